"""SearchFeatures: features by their labels, by direction, and by their activation in a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from vision_sae.bundles.patch_queries import mean_code
from vision_sae.errors import InvalidInputError, NotConfiguredError
from vision_sae.labels.entries import Unit
from vision_sae.models.vectors import site_vectors
from vision_sae.v1 import feature_pb2
from vision_sae.v1 import search_service_pb2 as pb
from vision_sae_server.answers.feature_values import passing
from vision_sae_server.answers.features import feature_messages
from vision_sae_server.labelling import Meaning
from vision_sae_server.requests.listing import page
from vision_sae_server.requests.regions import region_mask
from vision_sae_server.requests.unread import unread_texts
from vision_sae_server.served import Served, ServedModel, Units
from vision_sae_server.state import PreparedPicture, State

_DEFAULT_PAGE = 20
_MatchKind: TypeAlias = "pb.FeatureMatch.ValueType"
_APPLY: dict[str, tuple[_MatchKind, ...]] = {
    "text": (
        pb.FEATURE_MATCH_LABEL,
        pb.FEATURE_MATCH_EXEMPLARS,
        pb.FEATURE_MATCH_LABEL_EMBEDDING,
    ),
    "region": (pb.FEATURE_MATCH_ACTIVATION,),
    "feature": (pb.FEATURE_MATCH_DIRECTION,),
}
"""{kind of query: the kinds of match that it can have}"""
_MEANINGS: dict[int, Meaning] = {
    pb.FEATURE_MATCH_EXEMPLARS: "exemplars",
    pb.FEATURE_MATCH_LABEL_EMBEDDING: "label",
}


@dataclass(frozen=True)
class _FeatureMatch:
    """A feature that matches a query."""

    served: Units
    index: int
    score: float
    match: _MatchKind

    @property
    def unit(self) -> Unit:
        """The unit, as the store of labels names it."""
        return Unit(self.served.evidence.name, self.index)


async def search_features(
    state: State, request: pb.SearchFeaturesRequest
) -> pb.SearchFeaturesResponse:
    """A page of the features that answer a query best."""
    kind = request.WhichOneof("query") or ""
    if request.match and request.match not in _APPLY[kind]:
        known = ", ".join(pb.FeatureMatch.Name(match) for match in _APPLY[kind])
        raise InvalidInputError(f"a query by {kind} can match by {known}", field="match")
    if kind == "text":
        hits = await state.searching.run(lambda: _by_text(state, request))
    else:
        searched = [state.dictionary(name) for name in request.dictionaries]
        chosen = searched or list(state.dictionaries.values())
        if kind == "region":
            hits = await _by_region(state, request, chosen)
        else:
            hits = await state.searching.run(lambda: _by_feature(state, request, chosen))
    return await state.searching.run(lambda: _answer(state, request, hits))


def _answer(
    state: State, request: pb.SearchFeaturesRequest, hits: Sequence[_FeatureMatch]
) -> pb.SearchFeaturesResponse:
    kept = _filtered(hits, request.filter)
    shown, following = page(kept, request.page_size, request.page_token, _DEFAULT_PAGE)
    response = pb.SearchFeaturesResponse(next_page_token=following)
    if request.HasField("text") and _embeds(state, request):
        unread = unread_texts(state.labelling.unread_text, [("text", request.text)])
        response.unread_texts.extend(unread)
    features = {
        (name, feature.index): feature
        for name in {hit.served.resource for hit in shown}
        for feature in _features(name, shown, request)
    }
    for hit in shown:
        feature = features[hit.served.resource, hit.index]
        response.hits.append(pb.FeatureHit(feature=feature, score=hit.score, match=hit.match))
    return response


def _features(
    dictionary: str, hits: Sequence[_FeatureMatch], request: pb.SearchFeaturesRequest
) -> list[feature_pb2.Feature]:
    ours = [hit for hit in hits if hit.served.resource == dictionary]
    indices = [hit.index for hit in ours]
    return feature_messages(ours[0].served, indices, request.view, request.exemplars)


def _filtered(hits: Sequence[_FeatureMatch], filter: str) -> list[_FeatureMatch]:
    """The hits that pass a filter, in unchanged order."""
    indices: dict[str, list[int]] = {}
    served = {hit.served.resource: hit.served for hit in hits}
    for hit in hits:
        indices.setdefault(hit.served.resource, []).append(hit.index)
    passed = {
        (name, index) for name in served for index in passing(served[name], filter)(indices[name])
    }
    return [hit for hit in hits if (hit.served.resource, hit.index) in passed]


def _by_text(state: State, request: pb.SearchFeaturesRequest) -> list[_FeatureMatch]:
    """Search by the words of labels and, with a contrastive model, by meaning.

    Raw neurons are searched by words; by meaning only when the request names them, because the
    embeddings of a model's many neurons take a while to compute. Without ``match``, features whose
    labels contain the words come first, since the scores of words and of meanings are not
    comparable. Confirmed labels come before guesses.
    """
    if request.match in _MEANINGS and state.labelling.meanings is None:
        raise NotConfiguredError(
            "search by meaning needs a contrastive model, and this server was started without one; "
            "FEATURE_MATCH_LABEL finds words of labels",
            field="match",
        )
    named = [state.units(name) for name in request.dictionaries]
    chosen = named or list(state.dictionaries.values())
    hits: list[_FeatureMatch] = []
    if request.match in (pb.FEATURE_MATCH_UNSPECIFIED, pb.FEATURE_MATCH_LABEL):
        hits += _by_words(state, request.text, named or [*chosen, *state.neurons.values()])
    if request.match == pb.FEATURE_MATCH_UNSPECIFIED:
        known = {(hit.served.resource, hit.index) for hit in hits}
        near = _by_meaning(state, request.text, chosen, pb.FEATURE_MATCH_EXEMPLARS)
        hits += [hit for hit in near if (hit.served.resource, hit.index) not in known]
    elif request.match in _MEANINGS:
        hits += _by_meaning(state, request.text, chosen, request.match)
    return hits


def _embeds(state: State, request: pb.SearchFeaturesRequest) -> bool:
    """Whether the text encoder reads the text; a search by words alone reads all of the text."""
    return state.labelling.meanings is not None and request.match != pb.FEATURE_MATCH_LABEL


def _by_words(state: State, text: str, chosen: Sequence[Units]) -> list[_FeatureMatch]:
    served = {each.evidence.name: each for each in chosen}
    hits = [
        _FeatureMatch(served[hit.unit.parent], hit.unit.index, hit.rank, pb.FEATURE_MATCH_LABEL)
        for hit in state.labels.search(text, list(served))
        if hit.unit.index < served[hit.unit.parent].evidence.width
    ]
    return _confirmed_first(state, hits)


def _confirmed_first(state: State, hits: list[_FeatureMatch]) -> list[_FeatureMatch]:
    """The hits with confirmed labels, and then those with guesses."""
    confirmed = state.labels.confirmed(hit.unit for hit in hits)
    return sorted(hits, key=lambda hit: hit.unit not in confirmed)


def _by_meaning(
    state: State, text: str, chosen: Sequence[Units], match: _MatchKind
) -> list[_FeatureMatch]:
    meanings = state.labelling.meanings
    if meanings is None:
        return []
    hits = [
        _FeatureMatch(served, index, similarity, match)
        for served in chosen
        for index, similarity in meanings(text, served.evidence, _MEANINGS[match])
    ]
    hits.sort(key=lambda hit: -hit.score)
    return _confirmed_first(state, hits) if match == pb.FEATURE_MATCH_LABEL_EMBEDDING else hits


def _by_feature(
    state: State, request: pb.SearchFeaturesRequest, chosen: Sequence[Served]
) -> list[_FeatureMatch]:
    """Search by the cosine similarity of decoder directions in all dictionaries of the feature's
    site, and for the counterparts in dictionaries that were matched with the feature's."""
    own, index = state.feature(request.feature)
    comparable = [each for each in chosen if each.place == own.place]
    matched = [
        each
        for each in chosen
        if each.place != own.place and each.bundle.name in own.bundle.matches
    ]
    if request.dictionaries and len(comparable) + len(matched) < len(chosen):
        other = next(each for each in chosen if each not in comparable and each not in matched)
        raise InvalidInputError(
            f"{other.resource} is of another site than {request.feature}, and the two dictionaries "
            "were not matched; run `vision-sae match` on their bundles",
            field="dictionaries",
        )
    direction = own.bundle.dictionary.decoder[index]
    hits = []
    for each in comparable:
        decoder = each.bundle.dictionary.decoder
        cosines = torch.nn.functional.cosine_similarity(decoder, direction[None], dim=1)
        if each.resource == own.resource:
            cosines[index] = -torch.inf
        ranked = zip(range(len(decoder)), cosines.tolist(), strict=True)
        match = pb.FEATURE_MATCH_DIRECTION
        hits += [
            _FeatureMatch(each, i, cosine, match) for i, cosine in ranked if cosine > -torch.inf
        ]
    for each in matched:
        counterparts = own.bundle.matches[each.bundle.name]
        nearest, similarity = int(counterparts.nearest[index]), counterparts.similarities[index]
        if nearest >= 0:
            hits.append(_FeatureMatch(each, nearest, float(similarity), pb.FEATURE_MATCH_DIRECTION))
    return sorted(hits, key=lambda hit: -hit.score)


async def _by_region(
    state: State, request: pb.SearchFeaturesRequest, chosen: Sequence[Served]
) -> list[_FeatureMatch]:
    """Search by the activation in part of a picture.

    The score is the mean activation over the region's patches, divided by the feature's largest
    activation on its data set, because features differ in scale.
    """
    region = request.region.region if request.region.HasField("region") else None
    pictures: dict[str, PreparedPicture] = {}
    hits = []
    for served in chosen:
        name = served.model.resource
        if name not in pictures:
            pictures[name] = await state.picture(request.region.image.data, served.model)
        picture = pictures[name]
        mask = region_mask(region, served.bundle.grid, picture.geometry, "region.region")
        replica = served.model.free()
        shares = await replica.lane.run(partial(_shares, served, replica, picture, mask))
        hits += [
            _FeatureMatch(served, feature, share, pb.FEATURE_MATCH_ACTIVATION)
            for feature, share in shares.items()
        ]
    return sorted(hits, key=lambda hit: -hit.score)


def _shares(
    served: Served, replica: ServedModel, picture: PreparedPicture, mask: NDArray[np.bool_]
) -> dict[int, float]:
    """{feature: mean activation over the patches of ``mask`` (P), divided by the largest in the
    data}, of the features that fire there and in the data."""
    vectors = site_vectors(replica.model, served.bundle.site, picture.pixels)
    code = mean_code(served.bundle.dictionary, vectors.cpu().numpy()[mask])
    largest = served.bundle.statistics.max
    return {i: value / float(largest[i]) for i, value in code.items() if largest[i] > 0}

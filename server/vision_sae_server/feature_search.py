"""SearchFeatures: features by what their labels say, by direction, and by what a picture fires."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from vision_sae.errors import InvalidInputError, NotConfiguredError
from vision_sae.v1 import feature_pb2
from vision_sae.v1 import search_service_pb2 as pb
from vision_sae_server import messages
from vision_sae_server.feature_values import passing
from vision_sae_server.labelling import Meaning
from vision_sae_server.listing import page
from vision_sae_server.regions import region_mask
from vision_sae_server.served import Served, Units
from vision_sae_server.state import Picture, State
from vision_sae_server.unread import unread_texts
from vision_sae_server.vectors import site_vectors

_DEFAULT_PAGE = 20
_Match: TypeAlias = "pb.FeatureMatch.ValueType"
_APPLY: dict[str, tuple[_Match, ...]] = {
    "text": (
        pb.FEATURE_MATCH_LABEL,
        pb.FEATURE_MATCH_EXEMPLARS,
        pb.FEATURE_MATCH_LABEL_EMBEDDING,
    ),
    "region": (pb.FEATURE_MATCH_ACTIVATION,),
    "feature": (pb.FEATURE_MATCH_DIRECTION,),
}
"""What can make a feature match a query of each kind."""
_MEANINGS: dict[int, Meaning] = {
    pb.FEATURE_MATCH_EXEMPLARS: "exemplars",
    pb.FEATURE_MATCH_LABEL_EMBEDDING: "label",
}


@dataclass(frozen=True)
class _Hit:
    served: Units
    index: int
    score: float
    match: _Match


async def search_features(
    state: State, request: pb.SearchFeaturesRequest
) -> pb.SearchFeaturesResponse:
    """The features that answer a query best, a page of them."""
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
    state: State, request: pb.SearchFeaturesRequest, hits: Sequence[_Hit]
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
    dictionary: str, hits: Sequence[_Hit], request: pb.SearchFeaturesRequest
) -> list[feature_pb2.Feature]:
    ours = [hit for hit in hits if hit.served.resource == dictionary]
    indices = [hit.index for hit in ours]
    return messages.features(ours[0].served, indices, request.view, request.exemplars)


def _filtered(hits: Sequence[_Hit], filter: str) -> list[_Hit]:
    """The hits that pass, in their order."""
    indices: dict[str, list[int]] = {}
    served = {hit.served.resource: hit.served for hit in hits}
    for hit in hits:
        indices.setdefault(hit.served.resource, []).append(hit.index)
    passed = {
        (name, index) for name in served for index in passing(served[name], filter)(indices[name])
    }
    return [hit for hit in hits if (hit.served.resource, hit.index) in passed]


def _by_text(state: State, request: pb.SearchFeaturesRequest) -> list[_Hit]:
    """By words of the labels; then, where there is an index of meanings, by meaning.

    Raw neurons are found by their words; by meaning only when they are named: what is kept for it
    of every unit takes a while to make, and a model has many. Without ``match`` the features whose
    labels have the words come first: their scores and those of the others measure different things.
    Of labels that are searched, those that a judge has confirmed come before the guesses.
    """
    if request.match in _MEANINGS and state.labelling.meanings is None:
        raise NotConfiguredError(
            "search by meaning needs a contrastive model, and this server was started without one; "
            "FEATURE_MATCH_LABEL finds words of labels",
            field="match",
        )
    named = [state.units(name) for name in request.dictionaries]
    chosen = named or list(state.dictionaries.values())
    hits: list[_Hit] = []
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
    """Whether features are found by what a text means; if not, all of its words are read."""
    return state.labelling.meanings is not None and request.match != pb.FEATURE_MATCH_LABEL


def _by_words(state: State, text: str, chosen: Sequence[Units]) -> list[_Hit]:
    served = {each.evidence.name: each for each in chosen}
    return _confirmed_first(
        [
            _Hit(served[hit.unit.parent], hit.unit.index, hit.rank, pb.FEATURE_MATCH_LABEL)
            for hit in state.labels.search(text, list(served))
            if hit.unit.index < served[hit.unit.parent].evidence.width
        ]
    )


def _confirmed_first(hits: list[_Hit]) -> list[_Hit]:
    """Hits by what labels say: those whose label a judge has confirmed, then the guesses."""
    of_each: dict[str, list[_Hit]] = {}
    for hit in hits:
        of_each.setdefault(hit.served.evidence.name, []).append(hit)
    confirmed = {
        (name, index)
        for name, found in of_each.items()
        for index in found[0].served.labels.judges(name, [hit.index for hit in found])
    }
    return sorted(hits, key=lambda hit: (hit.served.evidence.name, hit.index) not in confirmed)


def _by_meaning(state: State, text: str, chosen: Sequence[Units], match: _Match) -> list[_Hit]:
    meanings = state.labelling.meanings
    if meanings is None:
        return []
    hits = [
        _Hit(served, index, similarity, match)
        for served in chosen
        for index, similarity in meanings.nearest(text, served.evidence, _MEANINGS[match])
    ]
    hits.sort(key=lambda hit: -hit.score)
    return _confirmed_first(hits) if match == pb.FEATURE_MATCH_LABEL_EMBEDDING else hits


def _by_feature(
    state: State, request: pb.SearchFeaturesRequest, chosen: Sequence[Served]
) -> list[_Hit]:
    """By the cosine of decoder directions, within all dictionaries of the feature's site; in others
    its counterpart, where the dictionaries were matched."""
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
        found = zip(range(len(decoder)), cosines.tolist(), strict=True)
        match = pb.FEATURE_MATCH_DIRECTION
        hits += [_Hit(each, i, cosine, match) for i, cosine in found if cosine > -torch.inf]
    for each in matched:
        counterparts = own.bundle.matches[each.bundle.name]
        nearest, similarity = int(counterparts.nearest[index]), counterparts.similarities[index]
        if nearest >= 0:
            hits.append(_Hit(each, nearest, float(similarity), pb.FEATURE_MATCH_DIRECTION))
    return sorted(hits, key=lambda hit: -hit.score)


async def _by_region(
    state: State, request: pb.SearchFeaturesRequest, chosen: Sequence[Served]
) -> list[_Hit]:
    """By how much a feature fires in part of a picture.

    The score is the mean activation over the patches of the part, as a share of the feature's
    largest activation on its data set: features differ in scale.
    """
    region = request.region.region if request.region.HasField("region") else None
    pictures: dict[str, Picture] = {}
    hits = []
    for served in chosen:
        name = served.model.resource
        if name not in pictures:
            pictures[name] = await state.picture(request.region.image.data, served.model)
        picture = pictures[name]
        mask = region_mask(region, served.bundle.grid, picture.geometry, "region.region")
        shares = await served.model.lane.run(partial(_shares, served, picture, mask))
        hits += [
            _Hit(served, int(i), float(shares[i]), pb.FEATURE_MATCH_ACTIVATION)
            for i in np.flatnonzero(shares)
        ]
    return sorted(hits, key=lambda hit: -hit.score)


def _shares(served: Served, picture: Picture, mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Mean activation (F) over the patches of ``mask`` (P), over the largest ever seen."""
    vectors = site_vectors(served.model.model, served.bundle.site, picture.pixels)
    codes = served.bundle.dictionary.encode(vectors[torch.from_numpy(mask)])
    width = served.bundle.dictionary.width
    total = np.bincount(
        codes.indices.numpy().ravel(), weights=codes.values.numpy().ravel(), minlength=width
    )
    largest = served.bundle.statistics.max
    ever = largest > 0
    shares = np.zeros(width)
    shares[ever] = total[ever] / mask.sum() / largest[ever]
    return shares

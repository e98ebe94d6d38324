"""Descriptions and their scores, as messages of ``description.proto``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vision_sae.descriptions.protocol import Score
from vision_sae.labels.entries import Entry, Unit
from vision_sae.models.names import shown_name
from vision_sae.resources import dictionary_of
from vision_sae.v1 import (
    description_pb2,
    exemplar_pb2,
)
from vision_sae_server.answers.enums import enum_value
from vision_sae_server.answers.exemplars import exemplar_count, indexed_patch, thumbnail_side
from vision_sae_server.served import Units

_MOST_CANDIDATES = 10


def score_message(measured: Score) -> description_pb2.Score:
    """One score of one text."""
    return description_pb2.Score(
        metric=enum_value(description_pb2.ScoreMetric, "SCORE_METRIC", measured.metric),
        value=measured.value,
        lower=measured.lower,
        upper=measured.upper,
        count=measured.n,
        control=measured.control,
        negatives=enum_value(description_pb2.ScoreNegatives, "SCORE_NEGATIVES", measured.negatives),
        judge=shown_name(measured.judge),
    )


def feature_name(unit: Unit) -> str:
    """The resource name of a unit: ``dictionaries/{dictionary}/features/{index}``."""
    return f"{dictionary_of(unit.parent)}/features/{unit.index}"


def description_message(
    served: Units | None,
    entry: Entry,
    options: exemplar_pb2.ExemplarOptions | None = None,
    history: Sequence[Entry] = (),
) -> description_pb2.Description:
    """A version of a description. With ``served`` and ``options``, it includes evidence, candidates
    and history."""
    content = entry.description
    message = description_pb2.Description(
        name=f"{feature_name(entry.unit)}/description",
        text=content.text,
        abstained=content.text is None,
        abstention_reason=content.abstained,
        origin=enum_value(description_pb2.DescriptionOrigin, "DESCRIPTION_ORIGIN", entry.origin),
        describer=content.describer,
        describer_version=str(content.describer_version) if content.describer else "",
        scores=map(score_message, content.scores),
        author=entry.author,
        etag=entry.etag,
        judged_by="" if content.text is None else shown_name(content.judged_by),
    )
    message.create_time.FromDatetime(entry.created)
    if served is not None and options is not None:
        count = exemplar_count(options)
        side = thumbnail_side(options)
        # Patch numbers of an earlier bundle of this name mean other patches in this one.
        known = entry.identity == served.evidence.identity
        patches = content.evidence[:count] if known else ()
        fires = _activations(served, entry.unit.index, patches)
        for patch, activation in zip(patches, fires, strict=True):
            shown = indexed_patch(served.evidence, patch, thumbnail=side, activation=activation)
            shown.quantile = served.quantile(entry.unit.index, activation)
            message.evidence.append(shown)
        message.candidates.extend(
            description_pb2.Candidate(text=text, value=value)
            for text, value in content.candidates[:_MOST_CANDIDATES]
        )
        message.history.extend(description_message(served, earlier) for earlier in history)
    return message


def _activations(units: Units, index: int, patches: Sequence[int]) -> list[float]:
    """The activation of a unit on each of ``patches``; 0 where it is not known."""
    if not patches:
        return []
    places = units.evidence.places(index)
    at = np.isin(places.rows, patches)
    fired = dict(zip(places.rows[at].tolist(), places.values[at].tolist(), strict=True))
    return [float(fired.get(patch, 0.0)) for patch in patches]

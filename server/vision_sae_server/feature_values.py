"""What filters and orders of features can name, as ListFeatures documents it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vision_sae.descriptions.store import Outline
from vision_sae.v1.description_pb2 import ScoreMetric
from vision_sae_server.listing import Values, matcher
from vision_sae_server.served import Units

_SCORES = tuple(
    name.removeprefix("SCORE_METRIC_").lower() for name, number in ScoreMetric.items() if number
)
_FIGURES = ("count", "firing_rate", "mean", "std", "max", "image_count")
_UNMEASURED: Values = dict.fromkeys(_FIGURES)
ORDER_FIELDS = (
    *("index", *_FIGURES),
    *("text", "describer", "origin", "author"),
    *(f"score.{metric}" for metric in _SCORES),
)
FILTER_FIELDS = (*ORDER_FIELDS, "described", "abstained", "confirmed")


def feature_values(units: Units, index: int, made: Outline | None) -> Values:
    """The values of one feature with its current description.

    A score that was measured against several kinds of negatives, or by several judges, counts as
    its lowest value.
    """
    scores: dict[str, float | None] = dict.fromkeys(_SCORES)
    for score in made.scores if made else ():
        if score.metric not in scores:  # of a later version that shares the store
            continue
        known = scores[score.metric]
        scores[score.metric] = score.value if known is None else min(known, score.value)
    return {
        "index": index,
        **_UNMEASURED,
        **units.figures(index),
        "text": made.text if made else None,
        "describer": made.describer if made else None,
        "origin": made.origin if made else None,
        "author": made.author if made else None,
        "described": made is not None and made.text is not None,
        "abstained": made is not None and made.text is None,
        "confirmed": made is not None and made.text is not None and made.judged_by != "",
        **{f"score.{metric}": value for metric, value in scores.items()},
    }


def values_of_all(units: Units) -> dict[int, Values]:
    """The values of every feature of a dictionary, by index."""
    outlines = units.labels.outlines(units.evidence.name)
    everything = range(units.evidence.width)
    return {index: feature_values(units, index, outlines.get(index)) for index in everything}


def passing(units: Units, filter: str) -> Callable[[Sequence[int]], list[int]]:
    """A function that keeps the features that pass a filter; checks the filter at once."""
    matches = matcher(filter, FILTER_FIELDS)

    def keep(indices: Sequence[int]) -> list[int]:
        if not filter.strip():
            return list(indices)
        values = values_of_all(units)
        return [index for index in indices if matches(values[index])]

    return keep

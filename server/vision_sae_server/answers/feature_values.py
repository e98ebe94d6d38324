"""The values that filters and orders of features can name, as ListFeatures documents them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vision_sae.labels.entries import Outline
from vision_sae.v1.description_pb2 import ScoreMetric
from vision_sae_server.requests.listing import Values, matcher
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


def feature_values(units: Units, index: int, outline: Outline | None) -> Values:
    """The values of one feature with its current description.

    For a metric with several scores, of different negatives or judges, the lowest score counts.
    """
    scores: dict[str, float | None] = dict.fromkeys(_SCORES)
    for score in outline.scores if outline else ():
        if score.metric not in scores:  # a newer server that shares the store may have more
            continue
        known = scores[score.metric]
        scores[score.metric] = score.value if known is None else min(known, score.value)
    return {
        "index": index,
        **_UNMEASURED,
        **units.figures(index),
        "text": outline.text if outline else None,
        "describer": outline.describer if outline else None,
        "origin": outline.origin if outline else None,
        "author": outline.author if outline else None,
        "described": outline is not None and outline.text is not None,
        "abstained": outline is not None and outline.text is None,
        "confirmed": outline is not None and outline.text is not None and outline.judged_by != "",
        **{f"score.{metric}": value for metric, value in scores.items()},
    }


def values_of_all(units: Units) -> dict[int, Values]:
    """{index: values} of every feature of a dictionary."""
    outlines = units.labels.outlines(units.evidence.name)
    everything = range(units.evidence.width)
    return {index: feature_values(units, index, outlines.get(index)) for index in everything}


def passing(units: Units, filter: str) -> Callable[[Sequence[int]], list[int]]:
    """A function that keeps the features that pass a filter. The filter is parsed at once."""
    matches = matcher(filter, FILTER_FIELDS)

    def keep(indices: Sequence[int]) -> list[int]:
        if not filter.strip():
            return list(indices)
        values = values_of_all(units)
        return [index for index in indices if matches(values[index])]

    return keep

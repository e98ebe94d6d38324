"""What filters and orders of features can name, as ListFeatures documents it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vision_sae.descriptions.store import Outline
from vision_sae.v1.description_pb2 import ScoreMetric
from vision_sae_server.listing import Values, matcher
from vision_sae_server.state import Served

_SCORES = tuple(
    name.removeprefix("SCORE_METRIC_").lower() for name, number in ScoreMetric.items() if number
)
ORDER_FIELDS = (
    *("index", "count", "firing_rate", "mean", "std", "max", "image_count"),
    *("text", "describer", "origin", "author"),
    *(f"score.{metric}" for metric in _SCORES),
)
FILTER_FIELDS = (*ORDER_FIELDS, "described", "abstained")


def feature_values(served: Served, index: int, made: Outline | None) -> Values:
    """The values of one feature with its current description.

    A score that was measured against several kinds of negatives counts as its lowest value.
    """
    bundle, stats = served.bundle, served.bundle.statistics
    scores: dict[str, float | None] = dict.fromkeys(_SCORES)
    for score in made.scores if made else ():
        known = scores[score.metric]
        scores[score.metric] = score.value if known is None else min(known, score.value)
    return {
        "index": index,
        "count": int(stats.count[index]),
        "firing_rate": float(stats.count[index]) / (len(bundle.codes.indptr) - 1),
        "mean": float(stats.mean[index]),
        "std": float(stats.std[index]),
        "max": float(stats.max[index]),
        "image_count": int(bundle.image_counts[index]),
        "text": made.text if made else None,
        "describer": made.describer if made else None,
        "origin": made.origin if made else None,
        "author": made.author if made else None,
        "described": made is not None and made.text is not None,
        "abstained": made is not None and made.text is None,
        **{f"score.{metric}": value for metric, value in scores.items()},
    }


def values_of_all(served: Served) -> dict[int, Values]:
    """The values of every feature of a dictionary, by index."""
    outlines = served.labels.outlines(served.resource)
    width = served.bundle.dictionary.width
    return {index: feature_values(served, index, outlines.get(index)) for index in range(width)}


def passing(served: Served, filter: str) -> Callable[[Sequence[int]], list[int]]:
    """A function that keeps the features that pass a filter; checks the filter at once."""
    matches = matcher(filter, FILTER_FIELDS)

    def keep(indices: Sequence[int]) -> list[int]:
        if not filter.strip():
            return list(indices)
        values = values_of_all(served)
        return [index for index in indices if matches(values[index])]

    return keep

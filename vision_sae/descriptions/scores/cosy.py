"""CoSy: does the unit fire in pictures that the text retrieves? (Kopf et al. 2024)

The pictures are retrieved from the probe, not generated: the pictures of largest cosine with the
text, among pictures that did not describe the unit. The other pictures are the control set.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import numpy as np
from jaxtyping import Float, Int64

from vision_sae.descriptions.kinds import (
    MISSING,
    FailedChecks,
    MetricKind,
    ScoreKind,
    ScoreRequest,
    register_score,
)
from vision_sae.descriptions.protocol import Metric, Score
from vision_sae.descriptions.scoring.scored import scored
from vision_sae.descriptions.scoring.similarity import picture_similarities
from vision_sae.evidence.probe import Probe
from vision_sae.statistics.bootstrap import Counts
from vision_sae.statistics.ranking import Numbers

RETRIEVED = 20
"""Pictures that a text retrieves, each of a different source."""


def retrieve(
    similarities: Float[np.ndarray, N], sources: Int64[np.ndarray, N], count: int
) -> Int64[np.ndarray, n]:
    """Positions of the ``count`` largest similarities, one position for each source."""
    order = np.argsort(-similarities, kind="stable")
    _, first = np.unique(sources[order], return_index=True)
    return np.asarray(order[np.sort(first)[:count]])


def contributions(
    metric: Metric, peaks: Float[np.ndarray, n], control: Float[np.ndarray, m]
) -> Float[np.ndarray, n]:
    """The contribution of each retrieved picture, whose mean is the score; NaN when undefined.

    ``peaks`` and ``control`` are activations in the retrieved pictures and in the control set.
    ``cosy_auc``: share of the control set in which the unit fires less, ties half.
    ``cosy_mean_difference``: distance from the control's mean in its standard deviations.
    """
    if metric == "cosy_auc":
        ordered = np.sort(control)
        below = np.searchsorted(ordered, peaks, "left") + np.searchsorted(ordered, peaks, "right")
        return np.asarray(below / (2 * len(control)))
    deviation = float(control.std(dtype=np.float64))
    return np.asarray((peaks - control.mean(dtype=np.float64)) / (deviation or np.nan))


def score(
    metrics: Iterable[Metric],
    probe: Probe,
    texts: Float[np.ndarray, "T E"],
    peaks: Float[np.ndarray, N],
    pictures: Int64[np.ndarray, N],
    sources: Int64[np.ndarray, N],
    *,
    seed: int,
) -> list[Score]:
    """Scores of the first of ``texts``; the other texts are the control.

    The texts retrieve from ``pictures``; ``peaks`` are the unit's strongest activations in these
    pictures, and ``sources`` their sources. Intervals are over the retrieved pictures. The mean
    difference is left out when the unit's activation is constant over the control set.
    """
    count = min(RETRIEVED, len(np.unique(sources)) - 1)
    if count < 1:
        return []
    chosen = [retrieve(s, sources, count) for s in picture_similarities(probe, pictures, texts)]
    scores = []
    for metric in metrics:
        statistics = [
            partial(_mean, contributions(metric, peaks[rows], np.delete(peaks, rows)))
            for rows in chosen
        ]
        scores.append(scored(metric, statistics, [count], seed))
    return [s for s in scores if s is not None]


def _mean(values: Numbers, drawn: Counts) -> Numbers:
    return np.asarray(drawn @ values / len(values))


def _measure(request: ScoreRequest) -> list[Score]:
    case = request.case
    pictures = case.undescribed
    return score(
        request.metrics,
        request.probe,
        request.texts,
        case.peaks[pictures],
        pictures,
        case.sources.of_picture[pictures],
        seed=request.seed,
    )


_FAILURE = FailedChecks(
    MISSING,
    "It uses the few pictures that the label retrieves first. A label that misses half of what the "
    "unit fires on still retrieves enough firing pictures.",
)
COSY = register_score(
    ScoreKind(
        "cosy",
        (MetricKind("cosy_auc", _FAILURE), MetricKind("cosy_mean_difference", _FAILURE)),
        __doc__,
        _measure,
    )
)

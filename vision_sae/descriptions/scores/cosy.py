"""CoSy: does the unit fire in pictures that the text finds? (Kopf et al. 2024)

The pictures are found in the probe, not generated: those of the largest cosine with the text, among
pictures that did not describe the unit. All others of these are the control set.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from vision_sae.descriptions.probe import Probe
from vision_sae.descriptions.protocol import Metric, Score
from vision_sae.descriptions.scores.bootstrap import Counts, scored
from vision_sae.descriptions.scores.ranking import Numbers
from vision_sae.descriptions.scores.similarity import picture_similarities

FOUND = 20
"""Pictures that a text finds, each of another source."""

METRICS = frozenset({"cosy_auc", "cosy_mean_difference"})


def find(
    similarities: NDArray[np.float32], sources: NDArray[np.int64], count: int
) -> NDArray[np.int64]:
    """Positions of the ``count`` largest of ``similarities`` (N), the largest of each source."""
    order = np.argsort(-similarities, kind="stable")
    _, first = np.unique(sources[order], return_index=True)
    return np.asarray(order[np.sort(first)[:count]])


def contributions(metric: Metric, found: Numbers, control: Numbers) -> Numbers:
    """The value of each found picture (n); the score is their mean. NaN where it is undefined.

    ``cosy_auc``: share of the control set (M) in which the unit fires less, ties half.
    ``cosy_mean_difference``: distance from the control's mean in its standard deviations.
    """
    if metric == "cosy_auc":
        ordered = np.sort(control)
        below = np.searchsorted(ordered, found, "left") + np.searchsorted(ordered, found, "right")
        return np.asarray(below / (2 * len(control)))
    deviation = float(control.std(dtype=np.float64))
    return np.asarray((found - control.mean(dtype=np.float64)) / (deviation or np.nan))


def score(
    metrics: Iterable[Metric],
    probe: Probe,
    texts: NDArray[np.float32],
    peaks: NDArray[np.float32],
    pictures: NDArray[np.int64],
    sources: NDArray[np.int64],
    *,
    seed: int,
) -> list[Score]:
    """Scores of the first of ``texts`` (T, E); the others are the control.

    ``pictures`` (N) are those the texts may find, ``peaks`` (N) the unit's strongest activations in
    them and ``sources`` (N) where they come from. Intervals are over the found pictures. The mean
    difference is left out where all of the control set fires the unit alike.
    """
    count = min(FOUND, len(np.unique(sources)) - 1)
    if count < 1:
        return []
    chosen = [find(s, sources, count) for s in picture_similarities(probe, pictures, texts)]
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

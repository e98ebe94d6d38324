"""Detection: does the text rank pictures that fire the unit before pictures that do not?

A picture's number is the cosine of the text with the whole of it, plus that with the window of it
that fits best: units see little things in large pictures, and scenes.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from vision_sae.descriptions.probe import Probe
from vision_sae.descriptions.protocol import Metric, Negatives, Score
from vision_sae.descriptions.scores.bootstrap import scored
from vision_sae.descriptions.scores.ranking import auc, balanced_accuracy
from vision_sae.descriptions.scores.similarity import (
    best_window_similarities,
    picture_similarities,
)

_STATISTICS = {"detection_auc": auc, "detection_balanced_accuracy": balanced_accuracy}
METRICS = frozenset(_STATISTICS)


def score(
    metrics: Iterable[Metric],
    probe: Probe,
    texts: NDArray[np.float32],
    firing: NDArray[np.int64],
    silent: NDArray[np.int64],
    negatives: Negatives,
    *,
    seed: int,
) -> list[Score]:
    """Scores of the first of ``texts`` (T, E); the others are the control.

    ``firing`` (n) and ``silent`` (m) are numbers of pictures. Nothing when one of them is empty.
    """
    strata = (len(firing), len(silent))
    if 0 in strata:
        return []
    pictures = np.concatenate([firing, silent])
    numbers = picture_similarities(probe, pictures, texts)
    numbers += best_window_similarities(probe, pictures, texts)
    positive, negative = np.split(numbers, [len(firing)], axis=1)
    found = []
    for metric in metrics:
        statistics = [
            partial(_STATISTICS[metric], p, n) for p, n in zip(positive, negative, strict=True)
        ]
        found.append(scored(metric, statistics, strata, seed, negatives=negatives))
    return [s for s in found if s is not None]

"""Detection: does the text rank pictures that fire the unit before pictures that do not?

A picture's number is its cosine with the text: of the whole picture, or (``region``) of the place
in it that matches best, for units that see little things in large pictures.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vision_sae.descriptions.probe import Probe
from vision_sae.descriptions.protocol import Metric, Negatives, Score
from vision_sae.descriptions.scores.bootstrap import scored
from vision_sae.descriptions.scores.ranking import auc, balanced_accuracy
from vision_sae.descriptions.scores.similarity import (
    best_region_similarities,
    picture_similarities,
)

Level = Literal["picture", "region"]

_SIMILARITIES = {"picture": picture_similarities, "region": best_region_similarities}
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
    level: Level = "picture",
) -> list[Score]:
    """Scores of the first of ``texts`` (T, E); the others are the control.

    ``firing`` (n) and ``silent`` (m) are numbers of pictures. Nothing when one of them is empty.
    """
    strata = (len(firing), len(silent))
    if 0 in strata:
        return []
    numbers = _SIMILARITIES[level](probe, np.concatenate([firing, silent]), texts)
    positive, negative = np.split(numbers, [len(firing)], axis=1)
    found = []
    for metric in metrics:
        statistics = [
            partial(_STATISTICS[metric], p, n) for p, n in zip(positive, negative, strict=True)
        ]
        found.append(scored(metric, statistics, strata, seed, negatives=negatives))
    return [s for s in found if s is not None]

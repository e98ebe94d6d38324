"""Statistics of binary classification by a score, with one value for each bootstrap resample.

Both functions take the scores of n positives and m negatives, and the number of times that each of
them counts in B resamples (`vision_sae.statistics.bootstrap.Counts`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Shaped
from numpy.typing import NDArray

Numbers = NDArray[np.floating[Any]]
"""Scores of some items."""


def auc(
    positives: Shaped[np.ndarray, " n"],
    negatives: Shaped[np.ndarray, " m"],
    positive_counts: Shaped[np.ndarray, "B n"],
    negative_counts: Shaped[np.ndarray, "B m"],
) -> Float[np.ndarray, " B"]:
    """Area under the ROC curve: the share of pairs in which the positive has the larger score.

    Ties count half.
    """
    larger = positives[:, None] > negatives
    wins = larger + np.float32(0.5) * (positives[:, None] == negatives)
    pairs = len(positives) * len(negatives)
    wins_by_resample = ((positive_counts @ wins) * negative_counts).sum(1, dtype=np.float64)
    return np.asarray(wins_by_resample / pairs)


def balanced_accuracy(
    positives: Shaped[np.ndarray, " n"],
    negatives: Shaped[np.ndarray, " m"],
    positive_counts: Shaped[np.ndarray, "B n"],
    negative_counts: Shaped[np.ndarray, "B m"],
) -> Float[np.ndarray, " B"]:
    """Mean of the accuracies on positives and on negatives at the best threshold.

    The threshold is chosen on the same scores, so chance lies above 1/2 when they are few: compare
    the result with the control.
    """
    values = np.concatenate([positives, negatives])
    order = np.argsort(-values, kind="stable")
    shares = np.concatenate(
        [positive_counts / len(positives), -negative_counts / len(negatives)], axis=1
    )
    gaps = shares[:, order].cumsum(1, dtype=np.float64)
    # A threshold cannot separate equal scores.
    thresholds = np.append(np.diff(values[order]) != 0, True)
    return np.asarray(0.5 + np.maximum(gaps[:, thresholds].max(1), 0) / 2)

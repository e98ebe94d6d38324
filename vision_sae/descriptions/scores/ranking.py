"""How well numbers tell positives from negatives: statistics that several scores share.

Both take the numbers of n positives and m negatives, and how often each counts in B resamples
(`vision_sae.descriptions.scores.bootstrap.Counts`), and give one value for each resample.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vision_sae.descriptions.scores.bootstrap import Counts

Numbers = NDArray[np.floating[Any]]


def auc(positives: Numbers, negatives: Numbers, drawn: Counts, against: Counts) -> Numbers:
    """Area under the ROC curve: the share of pairs in which the positive one has the larger number.

    Ties count half. ``positives`` (n), ``negatives`` (m), ``drawn`` (B, n), ``against`` (B, m)
    -> (B).
    """
    larger = positives[:, None] > negatives
    wins = larger + np.float32(0.5) * (positives[:, None] == negatives)
    pairs = len(positives) * len(negatives)
    return np.asarray(((drawn @ wins) * against).sum(1, dtype=np.float64) / pairs)


def balanced_accuracy(
    positives: Numbers, negatives: Numbers, drawn: Counts, against: Counts
) -> Numbers:
    """Mean of the shares of positives and of negatives told right at the best threshold.

    The threshold is chosen on the same numbers, so chance lies above 1/2 when they are few: read
    it against the control. Shapes as in `auc`.
    """
    values = np.concatenate([positives, negatives])
    order = np.argsort(-values, kind="stable")
    shares = np.concatenate([drawn / len(positives), -against / len(negatives)], axis=1)
    gaps = shares[:, order].cumsum(1, dtype=np.float64)
    # Equal numbers lie on one side of any threshold.
    thresholds = np.append(np.diff(values[order]) != 0, True)
    return np.asarray(0.5 + np.maximum(gaps[:, thresholds].max(1), 0) / 2)

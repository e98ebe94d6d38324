"""Statistics of the non-zero activations of each feature."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int64

from vision_sae.bundles.codes import SparseRows

QUANTILE_LEVELS = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)


class Statistics(NamedTuple):
    """One row per feature; all zero for a feature that never fires."""

    count: Int64[np.ndarray, " F"]  # type: ignore[assignment]  # hides tuple.count, which is unused
    """Number of patches on which the feature fires."""
    mean: Float32[np.ndarray, " F"]
    """Mean non-zero activation, which is the unit of steering strengths."""
    std: Float32[np.ndarray, " F"]
    """Standard deviation of the non-zero activations."""
    max: Float32[np.ndarray, " F"]
    """Largest activation."""
    quantiles: Float32[np.ndarray, "F Q"]
    """Quantiles of the non-zero activations at `QUANTILE_LEVELS`, with linear interpolation."""

    @property
    def alive(self) -> Int64[np.ndarray, " n"]:
        """The features that fire in the data."""
        return np.flatnonzero(self.count)

    @property
    def usual_mean(self) -> float:
        """The median, over the features that fire, of the mean non-zero activation; 0 when no
        feature fires."""
        fires = self.count > 0
        return float(np.median(self.mean[fires])) if fires.any() else 0.0


def statistics(postings: SparseRows) -> Statistics:
    """Compute the statistics from postings, which list each feature's activations in descending
    order."""
    count = np.diff(postings.indptr)
    values = postings.values.astype(np.float64)
    feature = np.repeat(np.arange(len(count)), count)
    safe = np.maximum(count, 1)
    mean = np.bincount(feature, values, len(count)) / safe
    deviation = np.bincount(feature, (values - mean[feature]) ** 2, len(count)) / safe
    quantiles = np.zeros((len(count), len(QUANTILE_LEVELS)))
    alive = count > 0
    for column, level in enumerate(QUANTILE_LEVELS):
        # Postings descend, so quantile q stands at position (1 - q) (n - 1) of its feature.
        position = (1 - level) * (count[alive] - 1)
        below = np.floor(position).astype(np.int64)
        above = np.minimum(below + 1, count[alive] - 1)
        start = postings.indptr[:-1][alive]
        low, high = values[start + below], values[start + above]
        quantiles[alive, column] = low + (high - low) * (position - below)
    return Statistics(
        count=count.astype(np.int64),
        mean=mean.astype(np.float32),
        std=np.sqrt(deviation).astype(np.float32),
        max=quantiles[:, -1].astype(np.float32),
        quantiles=quantiles.astype(np.float32),
    )

"""Statistics of each feature's activations, over its non-zero values."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vision_sae.bundles.codes import SparseRows

QUANTILE_LEVELS = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)


class Statistics(NamedTuple):
    """One row per feature; all zero for a feature that never fires."""

    count: NDArray[np.int64]  # type: ignore[assignment]  # hides tuple.count, which nobody needs
    """Patches on which the feature fires (F)."""
    mean: NDArray[np.float32]
    """Mean non-zero activation (F): the unit of steering strengths."""
    std: NDArray[np.float32]
    """Standard deviation of the non-zero activations (F)."""
    max: NDArray[np.float32]
    """Largest activation (F)."""
    quantiles: NDArray[np.float32]
    """Quantiles of the non-zero activations at `QUANTILE_LEVELS` (F, Q), linear interpolation."""

    @property
    def usual_mean(self) -> float:
        """The mean non-zero activation of the usual feature: the median over those that fire, 0
        where none does."""
        fires = self.count > 0
        return float(np.median(self.mean[fires])) if fires.any() else 0.0


def statistics(postings: SparseRows) -> Statistics:
    """Compute the statistics from feature -> activations, strongest first."""
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

"""Correlations of features' activations over the patches of a data set, in blocks."""

from __future__ import annotations

from copy import copy

import numpy as np
from jaxtyping import Float64, Int64
from scipy.sparse import csr_array

from vision_sae.bundles.codes import SparseRows


class Activations:
    """The codes of all patches as a sparse matrix, with every feature's mean and spread."""

    def __init__(self, codes: SparseRows, width: int) -> None:
        self.patches, self.width = len(codes.indptr) - 1, width
        values = codes.values.astype(np.float32)
        self.by_patch = csr_array((values, codes.indices, codes.indptr), (self.patches, width))
        self.by_feature = self.by_patch.T.tocsr()
        count = max(self.patches, 1)
        self.mean = np.bincount(codes.indices, values, width) / count
        square = np.bincount(codes.indices, np.square(values, dtype=np.float64), width)
        self.spread = np.sqrt(np.maximum(square / count - self.mean**2, 0))

    def permuted(self, rows: Int64[np.ndarray, " N"]) -> Activations:
        """The same activations with the patches in the order of ``rows``."""
        other = copy(self)
        other.by_patch = self.by_patch[rows]
        other.by_feature = other.by_patch.T.tocsr()
        return other

    def correlations(
        self, features: Int64[np.ndarray, " n"], other: Activations
    ) -> Float64[np.ndarray, "n F"]:
        """Pearson's correlations of some features with all F features of ``other``, over the same
        patches; minus infinity where an activation is constant."""
        products = (self.by_feature[features] @ other.by_patch).toarray() / max(self.patches, 1)
        covariances = products - self.mean[features, None] * other.mean
        with np.errstate(divide="ignore", invalid="ignore"):
            correlations = covariances / (self.spread[features, None] * other.spread)
        return np.asarray(np.nan_to_num(correlations, nan=-np.inf))

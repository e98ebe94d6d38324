"""Normalisation of vectors."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float32


def normalised(
    vectors: Float[np.ndarray, "N D"], centre: Float[np.ndarray, " D"] | float = 0.0
) -> Float32[np.ndarray, "N D"]:
    """Rows of ``vectors - centre`` scaled to unit norm; a zero row stays zero."""
    centred = vectors - centre
    norm = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.asarray(centred / np.maximum(norm, 1e-12), dtype=np.float32)

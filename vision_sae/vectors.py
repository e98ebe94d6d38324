"""Rows of vectors as directions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def normalised(
    vectors: NDArray[np.float32], centre: NDArray[np.float32] | float = 0.0
) -> NDArray[np.float32]:
    """Rows of ``vectors - centre`` scaled to unit norm; a zero row stays zero."""
    centred = vectors - centre
    norm = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.asarray(centred / np.maximum(norm, 1e-12), dtype=np.float32)

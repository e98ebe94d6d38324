"""Cosines of texts (T, E) with what a probe holds. Texts have unit length."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from vision_sae.descriptions.probe import Probe
from vision_sae.vectors import normalised

_SMOOTHING = 3
"""Side in patches of the square a patch's similarity is averaged over."""


def picture_similarities(
    probe: Probe, pictures: NDArray[np.int64], texts: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Of whole pictures (T, n)."""
    return np.asarray(texts @ probe.embeddings[pictures].T)


def patch_similarities(
    probe: Probe, pictures: NDArray[np.int64], texts: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Of each patch of the probe's grid (T, n, rows, cols)."""
    maps = np.empty((len(texts), len(pictures), probe.grid.patches), dtype=np.float32)
    for column, picture in enumerate(pictures):
        maps[:, column] = texts @ normalised(probe.patches[picture].astype(np.float32)).T
    return maps.reshape(*maps.shape[:2], probe.grid.rows, probe.grid.cols)


def best_region_similarities(
    probe: Probe, pictures: NDArray[np.int64], texts: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Of the patch that matches best in each picture, after smoothing (T, n)."""
    maps = patch_similarities(probe, pictures, texts)
    smooth = uniform_filter(maps, size=(1, 1, _SMOOTHING, _SMOOTHING), mode="nearest")
    return np.asarray(smooth.max(axis=(2, 3)))

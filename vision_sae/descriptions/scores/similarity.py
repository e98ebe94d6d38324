"""Cosines of texts (T, E) with what a probe holds. Texts have unit length."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from vision_sae.descriptions.probe import Probe
from vision_sae.vectors import normalised


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


def best_window_similarities(
    probe: Probe, pictures: NDArray[np.int64], texts: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Of the window that fits best in each picture (T, n)."""
    windows = torch.from_numpy(np.take(probe.windows, pictures, axis=0)).float()
    cosines = windows.flatten(0, 1) @ torch.from_numpy(texts).T
    return np.asarray(cosines.unflatten(0, windows.shape[:2]).amax(1).T.numpy())

"""Cosines of texts with the pictures, patches and windows of a probe; texts have length 1."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64

from vision_sae.evidence.probe import Probe
from vision_sae.vectors import normalised


def picture_similarities(
    probe: Probe, pictures: Int64[np.ndarray, n], texts: Float[np.ndarray, "T E"]
) -> Float[np.ndarray, "T n"]:
    """Cosines with whole pictures."""
    return np.asarray(texts @ probe.embeddings[pictures].T)


def patch_similarities(
    probe: Probe, pictures: Int64[np.ndarray, n], texts: Float[np.ndarray, "T E"]
) -> Float32[np.ndarray, "T n R C"]:
    """Cosines with each patch of the probe's grid."""
    maps = np.empty((len(texts), len(pictures), probe.grid.patches), dtype=np.float32)
    for column, picture in enumerate(pictures):
        maps[:, column] = texts @ normalised(probe.patches[picture].astype(np.float32)).T
    return maps.reshape(*maps.shape[:2], probe.grid.rows, probe.grid.cols)


def best_window_similarities(
    probe: Probe, pictures: Int64[np.ndarray, n], texts: Float[np.ndarray, "T E"]
) -> Float[np.ndarray, "T n"]:
    """The largest cosine over the windows of each picture."""
    windows = torch.from_numpy(np.take(probe.windows, pictures, axis=0)).float()
    cosines = windows.flatten(0, 1) @ torch.from_numpy(texts).T
    return np.asarray(cosines.unflatten(0, windows.shape[:2]).amax(1).T.numpy())

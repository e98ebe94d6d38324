"""Colours of heat maps: perceptually ordered colour ramps, interpolated from small tables."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Lightness grows evenly along each ramp, so that a larger value always looks stronger.
_WARM = np.array(
    [
        (66, 10, 104),
        (106, 23, 110),
        (147, 38, 103),
        (188, 55, 84),
        (221, 81, 58),
        (243, 120, 25),
        (252, 165, 10),
        (246, 215, 70),
        (252, 255, 164),
    ],
    dtype=np.float64,
)
_COLD = np.array(
    [(8, 29, 88), (37, 52, 148), (34, 94, 168), (29, 145, 192), (65, 182, 196), (199, 233, 180)],
    dtype=np.float64,
)

FEATURES = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
    (148, 103, 189),
    (140, 200, 75),
    (120, 120, 120),
    (255, 152, 150),
    (23, 190, 207),
)
"""One colour per feature of a list; colour-blind people can tell the first seven apart."""


def ramp(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Colours (..., 3) of values in [-1, 1]: warm for positive values, cold for negative values."""
    strength = np.clip(np.abs(values), 0.0, 1.0)
    warm, cold = _interpolate(_WARM, strength), _interpolate(_COLD, strength)
    return np.where((values < 0)[..., None], cold, warm).round().astype(np.uint8)


def _interpolate(table: NDArray[np.float64], at: NDArray[np.floating]) -> NDArray[np.float64]:
    stops = np.linspace(0.0, 1.0, len(table))
    return np.stack([np.interp(at, stops, table[:, channel]) for channel in range(3)], axis=-1)

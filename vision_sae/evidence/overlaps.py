"""The overlap of two models' patch grids in one original picture.

All patches are upright boxes, so patch (R, C) of one grid and patch (r, c) of the other share the
area ``vertical[R, r] * horizontal[C, c]``.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray

from vision_sae.models.grid import Geometry, PatchGrid


class Overlaps(NamedTuple):
    """Shared lengths, in pixels of the original picture, of the rows and columns of two grids."""

    vertical: Float32[np.ndarray, "R r"]
    """Shared height of each row of one grid and each row of the other."""
    horizontal: Float32[np.ndarray, "C c"]
    """Shared width of each column of one grid and each column of the other."""


def _edges(patches: int, side: int, cut: int, scale: float, limit: int) -> NDArray[np.float64]:
    """Edges (patches + 1) of the rows or columns of a grid, in pixels of the original picture."""
    return np.clip((np.arange(patches + 1) * side + cut) / scale, 0, limit)


def _shared(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float32]:
    """Lengths of the intersections of the intervals between two sets of edges."""
    ends = np.minimum(one[1:, None], other[None, 1:])
    starts = np.maximum(one[:-1, None], other[None, :-1])
    return np.asarray(np.maximum(ends - starts, 0), dtype=np.float32)


@lru_cache(maxsize=1024)
def overlaps(
    grid: PatchGrid, geometry: Geometry, other: PatchGrid, other_geometry: Geometry
) -> Overlaps:
    """The overlap of two grids in one original picture, with the geometry of this picture for each
    model."""

    def rows(g: PatchGrid, at: Geometry) -> NDArray[np.float64]:
        return _edges(g.rows, g.patch_height, at.top, at.scale_y, at.height)

    def columns(g: PatchGrid, at: Geometry) -> NDArray[np.float64]:
        return _edges(g.cols, g.patch_width, at.left, at.scale_x, at.width)

    return Overlaps(
        _shared(rows(grid, geometry), rows(other, other_geometry)),
        _shared(columns(grid, geometry), columns(other, other_geometry)),
    )

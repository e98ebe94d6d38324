"""Parts of pictures that requests name -> patches of a grid."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vision_sae.errors import InvalidInputError
from vision_sae.models.grid import Geometry, PatchGrid
from vision_sae.tensors import from_proto
from vision_sae.v1 import image_pb2


def region_mask(
    region: image_pb2.Region | None, grid: PatchGrid, geometry: Geometry
) -> NDArray[np.bool_]:
    """Patches (P) inside a region; all without one."""
    kind = region.WhichOneof("shape") if region is not None else None
    if region is None or kind is None:
        return np.ones(grid.patches, dtype=np.bool_)
    if kind == "box":
        b = region.box
        return grid.inside((b.x0, b.y0, b.x1, b.y1), geometry)
    mask = from_proto(region.mask, field="region.mask")
    if mask.ndim != 2 or 0 in mask.shape:
        raise InvalidInputError(
            f"a mask over a picture has rows and columns, this one has the shape {mask.shape}",
            field="region.mask",
        )
    return _covered(mask if mask.dtype == np.bool_ else mask >= 128, grid, geometry)


def _covered(mask: NDArray[np.bool_], grid: PatchGrid, geometry: Geometry) -> NDArray[np.bool_]:
    """Patches (P) half of which lies in a mask that is stretched over the picture; where none
    does, the one that is covered most."""
    boxes = grid.boxes(geometry)  # inside of the picture, whatever the model crops or pads
    scale = np.array([mask.shape[1] / geometry.width, mask.shape[0] / geometry.height] * 2)
    image = Image.fromarray(mask.astype(np.float32))
    shares = np.array(
        [
            np.asarray(image.resize((1, 1), Image.Resampling.BOX, box=tuple(corners)))[0, 0]
            if corners[2] > corners[0] and corners[3] > corners[1]
            else 0.0
            for corners in (boxes * scale).tolist()
        ]
    )
    inside = shares >= 0.5
    if not inside.any():
        inside[shares.argmax()] = True
    return inside

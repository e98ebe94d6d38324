"""Parts of pictures that requests name -> patches of a grid."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vision_sae.errors import InvalidInputError
from vision_sae.models.grid import Geometry, PatchGrid
from vision_sae.tensors import from_proto
from vision_sae.v1 import image_pb2, tensor_pb2

_INSIDE = 128
"""What a mask of greys has at least inside of the region."""


def region_mask(
    region: image_pb2.Region | None, grid: PatchGrid, geometry: Geometry, field: str = "region"
) -> NDArray[np.bool_]:
    """Patches (P) inside a region, at least one; all without a region.

    Raises `InvalidInputError` that names ``field`` for a region without a patch, and for a mask
    that cannot lie over the picture.
    """
    kind = region.WhichOneof("shape") if region is not None else None
    if region is None or kind is None:
        return np.ones(grid.patches, dtype=np.bool_)
    if kind == "box":
        b = region.box
        inside = grid.inside((b.x0, b.y0, b.x1, b.y1), geometry)
    else:
        inside = _covered(_mask(region.mask, geometry, f"{field}.mask"), grid, geometry)
    if not inside.any():
        x0, y0 = grid.boxes(geometry)[:, :2].min(0)
        x1, y1 = grid.boxes(geometry)[:, 2:].max(0)
        raise InvalidInputError(
            f"the region selects no patch: of the picture's {geometry.width} x {geometry.height} "
            f"pixels the model sees x {x0:g} to {x1:g} and y {y0:g} to {y1:g}; choose a part of "
            "that" + ("" if kind == "box" else ", and mark it with 1 or with 128 to 255"),
            field=field,
        )
    return inside


def _mask(tensor: tensor_pb2.Tensor, geometry: Geometry, field: str) -> NDArray[np.bool_]:
    """A mask over a picture, as `Region.mask` says what it may be."""
    mask = from_proto(tensor, field=field)
    if mask.dtype not in (np.bool_, np.uint8):
        raise InvalidInputError(
            f"a mask is of BOOL or UINT8 without a scale, this one is of {mask.dtype.name}",
            field=field,
        )
    if mask.ndim != 2 or 0 in mask.shape:
        raise InvalidInputError(
            f"a mask over a picture has rows and columns, this one has the shape {mask.shape}",
            field=field,
        )
    height, width = mask.shape
    larger = height > geometry.height or width > geometry.width
    # Of another shape by more than a pixel: turned, or of another picture.
    if larger and abs(height * geometry.width - width * geometry.height) > max(
        geometry.height, geometry.width, height, width
    ):
        raise InvalidInputError(
            f"the mask has {width} x {height} pixels, the picture {geometry.width} x "
            f"{geometry.height} once it is turned upright; send a mask of the picture's size",
            field=field,
        )
    if mask.dtype == np.bool_:
        return mask
    return np.asarray(mask == 1 if mask.max() == 1 else mask >= _INSIDE, dtype=np.bool_)


def _covered(mask: NDArray[np.bool_], grid: PatchGrid, geometry: Geometry) -> NDArray[np.bool_]:
    """Patches (P) half of which lies in a mask that is stretched over the picture; where none
    does, the one that is covered most; none where none is covered at all."""
    boxes = grid.boxes(geometry)  # inside of the picture, whatever the model crops or pads
    height, width = mask.shape
    scale = np.array([width / geometry.width, height / geometry.height] * 2)
    corners = np.clip(boxes * scale, 0, [width, height] * 2)  # rounded up, they would be outside
    image = Image.fromarray(mask.astype(np.float32))
    shares = np.array(
        [
            np.asarray(image.resize((1, 1), Image.Resampling.BOX, box=(x0, y0, x1, y1)))[0, 0]
            if x1 > x0 and y1 > y0
            else 0.0
            for x0, y0, x1, y1 in corners.tolist()
        ]
    )
    inside = shares >= 0.5
    if not inside.any() and shares.any():
        inside[shares.argmax()] = True
    return inside

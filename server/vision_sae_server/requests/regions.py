"""Translates regions of pictures to patches of a grid."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vision_sae.errors import InvalidInputError
from vision_sae.models.grid import Geometry, PatchGrid
from vision_sae.tensors import from_proto
from vision_sae.v1 import image_pb2, tensor_pb2

_INSIDE = 128
"""The lowest grey value of a mask that lies inside the region."""


def region_mask(
    region: image_pb2.Region | None, grid: PatchGrid, geometry: Geometry, field: str = "region"
) -> NDArray[np.bool_]:
    """Mask of the patches (P) inside a region; all patches without a region.

    Raises `InvalidInputError`, which names ``field``, for a region that contains no patch and for a
    mask that does not fit the picture.
    """
    kind = region.WhichOneof("shape") if region is not None else None
    if region is None or kind is None:
        return np.ones(grid.patches, dtype=np.bool_)
    if kind == "box":
        b = region.box
        inside = grid.inside((b.x0, b.y0, b.x1, b.y1), geometry)
    else:
        inside = _covered(_mask(region.mask, geometry, f"{field}.mask"), grid, geometry)
    advice = "" if kind == "box" else ", and mark it with 1 or with 128 to 255"
    grid.check_selects(inside, geometry, field, advice)
    return inside


def _mask(tensor: tensor_pb2.Tensor, geometry: Geometry, field: str) -> NDArray[np.bool_]:
    """The mask (H, W) of a tensor, which must be as the contract's ``Region.mask`` says."""
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
    # The aspect ratio differs by more than a pixel: the mask is rotated, or of another picture.
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
    """Patches (P) of which at least half lies in the mask, stretched over the picture. Without such
    a patch, the patch that is covered most; no patch when the mask covers none."""
    boxes = grid.boxes(geometry)  # clipped to the picture where the model pads
    height, width = mask.shape
    scale = np.array([width / geometry.width, height / geometry.height] * 2)
    corners = np.clip(boxes * scale, 0, [width, height] * 2)  # rounding may exceed the edge
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

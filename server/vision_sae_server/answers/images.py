"""Pictures, grids, patches and maps, as messages of ``image.proto``.

Patches and maps, the most frequent messages, are written into the answer in place. A message of its
own would be one more memory block to free, and protobuf calls glibc's ``malloc_trim`` after every
ten thousand freed blocks: the process then returns memory that the models need again.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from google.protobuf.internal.containers import RepeatedCompositeFieldContainer
from numpy.typing import NDArray
from PIL import Image

from vision_sae.models.grid import Geometry, PatchGrid
from vision_sae.tensors import to_proto, write
from vision_sae.v1 import (
    image_pb2,
    tensor_pb2,
)


def box_message(corners: Any) -> image_pb2.Box:
    """The message of a box (x0, y0, x1, y1)."""
    x0, y0, x1, y1 = (float(value) for value in corners)
    return image_pb2.Box(x0=x0, y0=y0, x1=x1, y1=y1)


def patch_grid(
    grid: PatchGrid,
    geometry: Geometry,
    special_tokens: Sequence[str],
    artifacts: NDArray[np.bool_] | None = None,
) -> image_pb2.PatchGrid:
    """The grid of one picture; where the model pads, the extent exceeds the picture."""
    left, top = geometry.left / geometry.scale_x, geometry.top / geometry.scale_y
    return image_pb2.PatchGrid(
        rows=grid.rows,
        cols=grid.cols,
        image_width=geometry.width,
        image_height=geometry.height,
        extent=image_pb2.Box(
            x0=left,
            y0=top,
            x1=left + grid.cols * grid.patch_width / geometry.scale_x,
            y1=top + grid.rows * grid.patch_height / geometry.scale_y,
        ),
        special_tokens=special_tokens,
        artifacts=None if artifacts is None else to_proto(artifacts.reshape(grid.rows, grid.cols)),
    )


def add_patches(
    added: RepeatedCompositeFieldContainer[image_pb2.PatchActivation],
    grid: PatchGrid,
    geometry: Geometry,
    positions: NDArray[Any],
    activations: NDArray[Any],
) -> None:
    """Add patches at the grid ``positions`` (N), with their ``activations`` (N)."""
    boxes = grid.boxes(geometry)[positions].tolist()
    for p, (x0, y0, x1, y1), a in zip(positions.tolist(), boxes, activations.tolist(), strict=True):
        message = added.add(row=p // grid.cols, col=p % grid.cols, activation=a)
        message.box.x0, message.box.y0, message.box.x1, message.box.y1 = x0, y0, x1, y1


def write_heatmap(tensor: tensor_pb2.Tensor, values: NDArray[Any], format_: int) -> None:
    """Write a map (rows, cols) in the element type of a heat-map format; nothing for
    HEATMAP_FORMAT_NONE."""
    if format_ == image_pb2.HEATMAP_FORMAT_NONE:
        return
    if format_ == image_pb2.HEATMAP_FORMAT_FLOAT32:
        write(tensor, values.astype(np.float32))
    elif format_ == image_pb2.HEATMAP_FORMAT_UINT8:
        low, high = float(values.min()), float(values.max())
        scale = (high - low) / 255 or 1.0
        tensor.scale, tensor.offset = scale, low
        write(tensor, np.round((values - low) / scale).astype(np.uint8))
    else:
        write(tensor, values.astype(np.float16))


def thumbnail_message(data: bytes, side: int) -> image_pb2.EncodedImage:
    """The picture of a JPEG file, reduced so that its longer side has at most ``side`` pixels."""
    image = Image.open(io.BytesIO(data))
    if max(image.size) > side:
        image.thumbnail((side, side))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=85)
        data = buffer.getvalue()
    return image_pb2.EncodedImage(
        data=data, format=image_pb2.IMAGE_FORMAT_JPEG, width=image.width, height=image.height
    )

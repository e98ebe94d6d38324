"""From patches of the model's input back to pixel boxes of the ORIGINAL picture."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float32
from numpy.typing import NDArray
from PIL import Image

from vision_sae.errors import ImageTooLargeError, InvalidInputError

_MAX_RESIZED = 100_000_000
"""Pixels that a picture may have after resizing and before cropping."""


@dataclass(frozen=True)
class Geometry:
    """How an original picture was resized and cropped into the model's input.

    A point of the input lies in the original at ``((x + left) / scale_x, (y + top) / scale_y)``.
    """

    width: int
    """Width of the original picture in pixels."""
    height: int
    """Height of the original picture in pixels."""
    scale_x: float
    """Resized width over original width."""
    scale_y: float
    """Resized height over original height."""
    left: int
    """Columns cut off (negative: padded) at the left of the resized picture."""
    top: int
    """Rows cut off (negative: padded) at the top of the resized picture."""

    @classmethod
    def whole(cls, width: int, height: int) -> Geometry:
        """The geometry of a picture that enters the model unchanged, as a generated one does."""
        return cls(width, height, 1, 1, 0, 0)


def _cut(surplus: int) -> int:
    """What torchvision's centre crop cuts off before the crop; negative where it pads."""
    return round(surplus / 2.0) if surplus > 0 else -(-surplus // 2)


@dataclass(frozen=True)
class Preprocessing:
    """Resize, centre crop and normalise: the numbers that timm's evaluation transform uses.

    ``crop_mode`` "center" scales the picture to cover ``(height, width) / crop_pct`` and cuts the
    centre; "squash" resizes both sides independently.
    """

    height: int
    width: int
    crop_pct: float = 1.0
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    crop_mode: Literal["center", "squash"] = "center"

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """(height, width) of a picture after resizing and before cropping."""
        target_h = int(self.height / self.crop_pct)
        target_w = int(self.width / self.crop_pct)
        if self.crop_mode == "squash":
            return target_h, target_w
        if target_h == target_w:  # torchvision's Resize(int) truncates the longer side
            if width <= height:
                return int(target_w * height / width), target_w
            return target_h, int(target_h * width / height)
        ratio = min(width / target_w, height / target_h)
        return round(height / ratio), round(width / ratio)

    def geometry(self, width: int, height: int) -> Geometry:
        """The geometry of a picture of this size."""
        resized_h, resized_w = self.resized(width, height)
        return Geometry(
            width=width,
            height=height,
            scale_x=resized_w / width,
            scale_y=resized_h / height,
            left=_cut(resized_w - self.width),
            top=_cut(resized_h - self.height),
        )

    def __call__(self, image: Image.Image) -> Float32[torch.Tensor, "C H W"]:
        """An RGB picture as normalised model input.

        Raises `ImageTooLargeError` for a sliver that would be enlarged beyond `_MAX_RESIZED`.
        """
        size = self.resized(*image.size)
        if size[0] * size[1] > _MAX_RESIZED:
            raise ImageTooLargeError(
                f"a picture of {image.width} x {image.height} pixels would be resized to "
                f"{size[1]} x {size[0]} before the crop; send one that is less elongated",
                field="image",
            )
        # By Pillow, as torchvision does it: the import of torchvision takes longer than torch's.
        resized = image.resize(size[::-1], Image.Resampling[self.interpolation.upper()])
        left, top = (
            _cut(s - m) for s, m in zip(size[::-1], (self.width, self.height), strict=True)
        )
        cropped = resized.crop((left, top, left + self.width, top + self.height))
        # In NumPy, whose arithmetic stays in its own thread: torch's would start a team of OpenMP
        # threads for every thread that decodes, and slow down the model's.
        pixels = np.ascontiguousarray(np.asarray(cropped).transpose(2, 0, 1)).astype(np.float32)
        pixels /= np.float32(255)
        pixels -= np.array(self.mean, dtype=np.float32)[:, None, None]
        pixels /= np.array(self.std, dtype=np.float32)[:, None, None]
        return torch.from_numpy(pixels)

    def in_words(self) -> str:
        """How a picture is brought to size: ``resize shorter side to 224, crop centre``."""
        height, width = (int(side / self.crop_pct) for side in (self.height, self.width))
        if self.crop_mode == "squash":
            resized = f"stretch to {width} x {height}"
        elif height == width:
            resized = f"resize shorter side to {height}"
        else:
            resized = f"resize to cover {width} x {height}"
        whole = self.crop_mode == "squash" and (height, width) == (self.height, self.width)
        return resized if whole else f"{resized}, crop centre"

    def to_json(self) -> dict[str, Any]:
        """The fields, as a manifest records them."""
        return asdict(self)


@dataclass(frozen=True)
class PatchGrid:
    """Which tokens of a site are patches, and where they lie.

    Tokens come as ``special`` prefix tokens (CLS, registers) followed by ``rows * cols`` patches
    in row-major order.
    """

    rows: int
    cols: int
    special: int
    """Number of leading tokens that are not patches (CLS and registers)."""
    patch_height: int
    """Height of a patch in pixels of the model's input."""
    patch_width: int
    """Width of a patch in pixels of the model's input."""

    @property
    def patches(self) -> int:
        """Patches per picture, ``rows * cols``."""
        return self.rows * self.cols

    def boxes(self, geometry: Geometry) -> Float32[np.ndarray, "P 4"]:
        """Boxes of all patches as (x0, y0, x1, y1), half open, in original pixels.

        Boxes are clipped to the picture: a patch wholly in padding has an empty box.
        """
        return _boxes(self, geometry)

    def inside(
        self, box: tuple[float, float, float, float], geometry: Geometry
    ) -> Bool[np.ndarray, " P"]:
        """Mask of the patches that lie by half or more in ``box`` (original pixels).

        A box that covers half of no patch selects the patch that it overlaps most. A box outside of
        the part of the picture that the model sees selects no patch.
        """
        boxes = self.boxes(geometry).astype(np.float64)
        low, high = boxes[:, :2], boxes[:, 2:]
        shared = np.clip(np.minimum(high, box[2:]) - np.maximum(low, box[:2]), 0, None).prod(1)
        area = (high - low).prod(1)
        mask = (shared >= area / 2) & (area > 0)
        if not mask.any() and (shared > 0).any():
            mask[shared.argmax()] = True
        return np.asarray(mask, dtype=np.bool_)

    def check_selects(
        self, mask: Bool[np.ndarray, " P"], geometry: Geometry, field: str, advice: str = ""
    ) -> None:
        """Raise `InvalidInputError`, which names ``field``, for a mask without any patch.

        The message says which part of the picture the model sees, and ends with ``advice``.
        """
        if mask.any():
            return
        boxes = self.boxes(geometry)
        (x0, y0), (x1, y1) = boxes[:, :2].min(0), boxes[:, 2:].max(0)
        raise InvalidInputError(
            f"the region selects no patch: of the picture's {geometry.width} x {geometry.height} "
            f"pixels the model sees x {x0:g} to {x1:g} and y {y0:g} to {y1:g}; choose a part of "
            f"that{advice}",
            field=field,
        )

    def nearest(self, x: float, y: float, geometry: Geometry) -> int:
        """The patch whose middle is nearest to a point of the original picture."""
        boxes = self.boxes(geometry).astype(np.float64)
        middles = (boxes[:, :2] + boxes[:, 2:]) / 2
        return int(np.square(middles - (x, y)).sum(1).argmin())

    def to_json(self) -> dict[str, int]:
        """The fields, as a manifest records them."""
        return asdict(self)


@lru_cache(maxsize=1024)
def _boxes(grid: PatchGrid, geometry: Geometry) -> NDArray[np.float32]:
    """`PatchGrid.boxes`, shared by all pictures of one size, and so read-only."""
    row, col = np.divmod(np.arange(grid.patches), grid.cols)
    x = np.stack([col, col + 1]) * grid.patch_width + geometry.left
    y = np.stack([row, row + 1]) * grid.patch_height + geometry.top
    x0, x1 = np.clip(x / geometry.scale_x, 0, geometry.width)
    y0, y1 = np.clip(y / geometry.scale_y, 0, geometry.height)
    boxes = np.stack([x0, y0, x1, y1], axis=1).astype(np.float32)
    boxes.setflags(write=False)
    return boxes

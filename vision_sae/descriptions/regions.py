"""Exemplars as pictures: the region that fires a unit, in the thumbnail of the evidence."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageDraw

from vision_sae.evidence.protocol import Evidence, Firing
from vision_sae.pictures.decode import decode_image

Box = tuple[int, int, int, int]
"""(left, top, right, bottom) in pixels, half open."""


def thumbnail(evidence: Evidence, image: int) -> Image.Image:
    """The thumbnail of a picture, RGB."""
    return decode_image(evidence.thumbnail(image))


def region(evidence: Evidence, firing: Firing, size: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
    """The mask of the firing pixels in a thumbnail of this ``size`` (width, height).

    A patch covers every pixel that the patch touches, so that no region is empty.
    """
    width, height = size
    geometry = evidence.geometry(firing.image)
    scale = np.array([width / geometry.width, height / geometry.height] * 2)
    mask = np.zeros((height, width), dtype=np.bool_)
    for x0, y0, x1, y1 in evidence.grid.boxes(geometry)[firing.mask.ravel()] * scale:
        rows = slice(int(y0), max(int(np.ceil(y1)), int(y0) + 1))
        mask[rows, int(x0) : max(int(np.ceil(x1)), int(x0) + 1)] = True
    return mask


def bounds(mask: Bool[np.ndarray, "H W"], margin: float) -> Box:
    """The box around a mask, enlarged on every side by ``margin`` of the box's longer side."""
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    left, top, right, bottom = cols[0], rows[0], cols[-1] + 1, rows[-1] + 1
    padding = round(margin * max(right - left, bottom - top))
    height, width = mask.shape
    return (
        max(int(left) - padding, 0),
        max(int(top) - padding, 0),
        min(int(right) + padding, width),
        min(int(bottom) + padding, height),
    )


def blanked(
    picture: Image.Image, mask: Bool[np.ndarray, "H W"], colour: tuple[int, int, int]
) -> Image.Image:
    """The region alone: a crop to the region's box, filled with ``colour`` outside the region."""
    ground = Image.new("RGB", picture.size, colour)
    return Image.composite(picture, ground, Image.fromarray(mask)).crop(bounds(mask, 0))


def outlined(picture: Image.Image, mask: Bool[np.ndarray, "H W"], side: int) -> Image.Image:
    """The region in its surroundings, outlined in red: a crop of ``side`` pixels on its longer
    side."""
    left, top, right, bottom = box = bounds(mask, 0.5)
    scale = side / max(right - left, bottom - top)
    size = (max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale)))
    crop = picture.crop(box).resize(size, Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(crop)
    for line in _outline(mask[top:bottom, left:right]):
        pen.line([(x * scale, y * scale) for x, y in line], fill=(255, 0, 0), width=3)
    return crop


def _outline(mask: Bool[np.ndarray, "H W"]) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """The sides of pixels at the boundary of a mask."""
    padded = np.pad(mask, 1)
    across = padded[1:, 1:-1] != padded[:-1, 1:-1]
    along = padded[1:-1, 1:] != padded[1:-1, :-1]
    flat = [((int(x), int(y)), (int(x) + 1, int(y))) for y, x in np.argwhere(across)]
    upright = [((int(x), int(y)), (int(x), int(y) + 1)) for y, x in np.argwhere(along)]
    return flat + upright

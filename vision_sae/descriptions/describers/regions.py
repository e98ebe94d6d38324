"""Exemplars as pictures: where a unit fires, in the thumbnail that is kept as evidence."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vision_sae.descriptions.evidence.protocol import Evidence, Firing
from vision_sae.pictures.decode import decode_image

Box = tuple[int, int, int, int]
"""(left, top, right, bottom) in pixels, half open."""


def thumbnail(evidence: Evidence, image: int) -> Image.Image:
    """The thumbnail of a picture, RGB."""
    return decode_image(evidence.thumbnail(image))


def region(evidence: Evidence, firing: Firing, size: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels (height, width) of a thumbnail of this ``size`` (width, height) that fire.

    A patch covers every pixel that it touches, so that no region is empty.
    """
    width, height = size
    geometry = evidence.geometry(firing.image)
    scale = np.array([width / geometry.width, height / geometry.height] * 2)
    mask = np.zeros((height, width), dtype=np.bool_)
    for x0, y0, x1, y1 in evidence.grid.boxes(geometry)[firing.mask.ravel()] * scale:
        rows = slice(int(y0), max(int(np.ceil(y1)), int(y0) + 1))
        mask[rows, int(x0) : max(int(np.ceil(x1)), int(x0) + 1)] = True
    return mask


def bounds(mask: NDArray[np.bool_], margin: float) -> Box:
    """The box around a mask, grown on every side by ``margin`` of its longer side."""
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    left, top, right, bottom = cols[0], rows[0], cols[-1] + 1, rows[-1] + 1
    grown = round(margin * max(right - left, bottom - top))
    height, width = mask.shape
    return (
        max(int(left) - grown, 0),
        max(int(top) - grown, 0),
        min(int(right) + grown, width),
        min(int(bottom) + grown, height),
    )


def blanked(
    picture: Image.Image, mask: NDArray[np.bool_], colour: tuple[int, int, int]
) -> Image.Image:
    """The region alone: the picture cut to its box, ``colour`` wherever it is not the region."""
    ground = Image.new("RGB", picture.size, colour)
    return Image.composite(picture, ground, Image.fromarray(mask)).crop(bounds(mask, 0))


def outlined(picture: Image.Image, mask: NDArray[np.bool_], side: int) -> Image.Image:
    """The region in its surroundings, outlined in red: a crop whose longer side is ``side``."""
    left, top, right, bottom = box = bounds(mask, 0.5)
    scale = side / max(right - left, bottom - top)
    size = (max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale)))
    crop = picture.crop(box).resize(size, Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(crop)
    for line in _outline(mask[top:bottom, left:right]):
        pen.line([(x * scale, y * scale) for x, y in line], fill=(255, 0, 0), width=3)
    return crop


def _outline(mask: NDArray[np.bool_]) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """The sides of pixels at which a mask (height, width) begins or ends."""
    padded = np.pad(mask, 1)
    across = padded[1:, 1:-1] != padded[:-1, 1:-1]
    along = padded[1:-1, 1:] != padded[1:-1, :-1]
    flat = [((int(x), int(y)), (int(x) + 1, int(y))) for y, x in np.argwhere(across)]
    upright = [((int(x), int(y)), (int(x), int(y) + 1)) for y, x in np.argwhere(along)]
    return flat + upright

"""Photographs: crops of free pictures, as `photographs.jsonl` lists and captions them.

A line of that file is one photograph: its package, its path inside the package, its author,
licence and split, and its crops. A crop has a box in fractions of the picture (left, top,
right, bottom) and a caption written by looking at it; a cut-out picture also names the colour
laid behind it. All crops of a photograph are in one split.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from tools.demo.corpus_drawn import COLOURS

SHORTER_SIDE = 248
LONGEST_SIDE = 400
MARGIN = 0.06  # left free around a cut-out picture, as a share of its longer side


@dataclass(frozen=True)
class Crop:
    """One region of a photograph and what it shows."""

    box: tuple[float, float, float, float]
    caption: str
    background: str | None = None


@dataclass(frozen=True)
class Photograph:
    """One line of `photographs.jsonl`."""

    package: str
    path: str
    author: str
    license: str
    split: str
    crops: Sequence[Crop]

    @property
    def slug(self) -> str:
        """A file name of its own: the package and the path, in letters, digits and dashes."""
        inside = re.sub(r"^usr/share/|contents/images/|\.\w+$", "", self.path)
        return re.sub(r"[^a-z0-9]+", "-", inside.lower()).strip("-")


def read_photographs(path: Path) -> list[Photograph]:
    """Every photograph of the list, in its order."""
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [
        Photograph(**line | {"crops": [Crop(**crop) for crop in line["crops"]]}) for line in lines
    ]


def cut(photograph: Photograph, crop: Crop, root: Path) -> Image.Image:
    """Open, cut and scale one crop."""
    with Image.open(root / photograph.path) as file:
        picture = ImageOps.exif_transpose(file)
        picture = _flatten(picture, crop.background) if crop.background else picture.convert("RGB")
    left, top, right, bottom = crop.box
    region = picture.crop(
        (
            round(left * picture.width),
            round(top * picture.height),
            round(right * picture.width),
            round(bottom * picture.height),
        )
    )
    return _scale(region)


def _flatten(picture: Image.Image, background: str) -> Image.Image:
    """Lay a cut-out picture on a plain colour with a margin around what is opaque."""
    cutout = picture.convert("RGBA")
    cutout = cutout.crop(cutout.getchannel("A").getbbox())
    margin = round(MARGIN * max(cutout.size))
    size = (cutout.width + 2 * margin, cutout.height + 2 * margin)
    # A very long or tall object is given a canvas of at most 3 : 2, so that nothing is cut off.
    size = (max(size[0], size[1] * 2 // 3), max(size[1], size[0] * 2 // 3))
    canvas = Image.new("RGB", size, COLOURS[background])
    corner = ((size[0] - cutout.width) // 2, (size[1] - cutout.height) // 2)
    canvas.paste(cutout, corner, cutout)
    return canvas


def _scale(region: Image.Image) -> Image.Image:
    factor = min(SHORTER_SIDE / min(region.size), LONGEST_SIDE / max(region.size))
    size = (round(region.width * factor), round(region.height * factor))
    return region.resize(size, Image.Resampling.LANCZOS)

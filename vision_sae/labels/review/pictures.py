"""The pictures of a review: thumbnails with the region outlined, as files that pages show.

A file is named by a hash of its bytes, so that the name gives no hint about the feature.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageFilter

from vision_sae.descriptions.regions import region, thumbnail
from vision_sae.evidence.protocol import Evidence, Firing

FOLDER = "pictures"

_SIDE = 256
"""The longer side of a picture in pixels."""
_DIMMED = 0.55
"""Brightness of the pixels outside the region."""
_LINE, _EDGE = (255, 220, 0), (0, 0, 0)
"""Colours of an outline and of the thin line around it: one of them is visible on any ground."""
_QUALITY = 85


def plain(evidence: Evidence, image: int) -> Image.Image:
    """A picture without an outline."""
    small = thumbnail(evidence, image)
    scale = _SIDE / max(small.size)
    width, height = (max(1, round(length * scale)) for length in small.size)
    return small.resize((width, height), Image.Resampling.BICUBIC)


def marked(evidence: Evidence, firing: Firing) -> Image.Image:
    """A picture with the region of a firing outlined and the other pixels darkened."""
    picture = plain(evidence, firing.image)
    return outlined(picture, region(evidence, firing, picture.size))


def outlined(picture: Image.Image, mask: NDArray[np.bool_]) -> Image.Image:
    """The picture with an outline around ``mask`` (H, W), darker outside the mask."""
    inside = Image.fromarray(mask.astype(np.uint8) * 255)
    dark = picture.point(lambda level: round(level * _DIMMED))
    shown = Image.composite(picture, dark, inside)
    line = inside.filter(ImageFilter.MaxFilter(5))
    edge = inside.filter(ImageFilter.MaxFilter(7))
    shown.paste(_EDGE, mask=ImageChops.subtract(edge, line))
    shown.paste(_LINE, mask=ImageChops.subtract(line, inside))
    return shown


class Album:
    """The folder of the pictures that the pages of a review show."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory / FOLDER
        self._directory.mkdir(parents=True, exist_ok=True)

    def add(self, picture: Image.Image) -> str:
        """Save a picture; return its address for pages beside the folder."""
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=_QUALITY)
        data = buffer.getvalue()
        name = f"{hashlib.sha256(data).hexdigest()[:20]}.jpg"
        (self._directory / name).write_bytes(data)
        return f"{FOLDER}/{name}"

"""One picture of a whole answer: overlay, label and exemplars of each feature."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

_SIDE, _GAP, _TEXT = 150, 10, 34
_EXEMPLARS = 4


class FeatureRow(NamedTuple):
    """One feature of the answer."""

    overlay: Image.Image
    label: str
    """The label, or a note that there is none."""
    figures: str
    """Its number and activation."""
    exemplars: Sequence[bytes]
    """Thumbnails of pictures that fire the feature, as encoded files."""


def _square(image: Image.Image) -> Image.Image:
    """The picture fitted into a square, on white."""
    fitted = image.convert("RGB")
    fitted.thumbnail((_SIDE, _SIDE))
    square = Image.new("RGB", (_SIDE, _SIDE), "white")
    square.paste(fitted, ((_SIDE - fitted.width) // 2, (_SIDE - fitted.height) // 2))
    return square


def montage(rows: Sequence[FeatureRow]) -> Image.Image:
    """Paint one row per feature, with the overlay at the left and exemplars at the right."""
    columns = 1 + _EXEMPLARS
    height = _SIDE + _TEXT + _GAP
    sheet = Image.new("RGB", (columns * (_SIDE + _GAP) + _GAP, len(rows) * height + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    bold, small = ImageFont.load_default(15), ImageFont.load_default(12)
    for number, row in enumerate(rows):
        top = _GAP + number * height
        draw.text((_GAP, top), row.label, fill="black", font=bold)
        draw.text((_GAP, top + 17), row.figures, fill="dimgrey", font=small)
        pictures = [row.overlay, *(Image.open(io.BytesIO(data)) for data in row.exemplars)]
        for column, picture in enumerate(pictures[:columns]):
            sheet.paste(_square(picture), (_GAP + column * (_SIDE + _GAP), top + _TEXT))
    return sheet

"""Contact sheets: many small pictures in one."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

_GAP = 4


def contact_sheet(rows: Sequence[Sequence[Image.Image]], *, gap: int = _GAP) -> Image.Image:
    """Lay out rows of pictures, with ``gap`` white pixels between them. Rows may differ in length,
    and pictures in size."""
    widths = [sum(picture.width + gap for picture in row) for row in rows]
    heights = [max(picture.height for picture in row) + gap for row in rows]
    sheet = Image.new("RGB", (max(widths) - gap, sum(heights) - gap), "white")
    top = 0
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for picture in row:
            sheet.paste(picture, (left, top))
            left += picture.width + gap
        top += height
    return sheet

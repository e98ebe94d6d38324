"""Many small pictures as one."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

_GAP = 2


def contact_sheet(rows: Sequence[Sequence[Image.Image]], *, gap: int = _GAP) -> Image.Image:
    """Rows of pictures, all of one size, with ``gap`` white pixels between them; a row may be
    shorter than others."""
    width, height = rows[0][0].size
    columns = max(map(len, rows))
    size = (columns * (width + gap) - gap, len(rows) * (height + gap) - gap)
    sheet = Image.new("RGB", size, "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            sheet.paste(picture, (x * (width + gap), y * (height + gap)))
    return sheet

"""Display of results: tables for terminals, notebooks and pandas, and inline pictures."""

from __future__ import annotations

import base64
import html
import io
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vision_sae.errors import MissingDependencyError
from vision_sae.models.grid import Geometry, PatchGrid
from vision_sae.tables import table

if TYPE_CHECKING:
    import pandas

Row: TypeAlias = Mapping[str, Any]
"""{column: value}; all rows of a table have the same columns."""
_LONGEST = 40
"""Longest text in a table for a terminal, in characters; a longer text is cut."""
_SIDE = 256
"""Longer side in pixels of a picture in a notebook."""
_HEAT = (255, 64, 0)
_OPACITY = 0.65


def cell(value: Any) -> str:
    """A value of a table as text: a float has four digits, and None is empty."""
    if value is None:
        return ""
    if isinstance(value, float | np.floating):
        return f"{float(value):.4g}"
    return str(value)


def text_table(rows: Sequence[Row]) -> str:
    """Rows as aligned lines for a terminal; numbers are right-aligned."""
    if not rows:
        return "(nothing)"
    numbers = [
        position
        for position, value in enumerate(rows[0].values())
        if isinstance(value, int | float | np.number) or value is None
    ]
    cells = [[_cut(cell(value)) for value in row.values()] for row in rows]
    return table(list(rows[0]), cells, right=numbers, rule=False, plain=True)


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def html_table(rows: Sequence[Row]) -> str:
    """Rows as a table of HTML. Texts are escaped; pictures are shown inline."""
    if not rows:
        return "<p>(nothing)</p>"
    head = "".join(f"<th>{html.escape(name)}</th>" for name in rows[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{_html_cell(value)}</td>" for value in row.values()) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _html_cell(value: Any) -> str:
    return img(value) if isinstance(value, Image.Image) else html.escape(cell(value))


def paragraph(text: str) -> str:
    """A text as a paragraph of HTML, escaped."""
    return f"<p>{html.escape(text)}</p>"


def img(image: Image.Image, title: str = "") -> str:
    """A picture as an ``img`` of HTML with its bytes inline, at most `_SIDE` pixels long."""
    shown = image.convert("RGB")
    shown.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    shown.save(buffer, "JPEG", quality=80)
    data = base64.b64encode(buffer.getvalue()).decode()
    text = html.escape(title, quote=True)
    return f'<img src="data:image/jpeg;base64,{data}" alt="{text}" title="{text}">'


def frame(rows: Sequence[Row]) -> pandas.DataFrame:
    """Rows as a data frame. Raises `MissingDependencyError` if pandas is not installed."""
    try:
        import pandas
    except ImportError as error:
        raise MissingDependencyError(
            "a data frame needs pandas, which is not installed; run `pip install pandas`, or read "
            "the fields of the result",
            field="to_pandas",
        ) from error
    return pandas.DataFrame([dict(row) for row in rows])


class Table(ABC):
    """A result that shows itself as a heading and a table, in a terminal and in a notebook."""

    @abstractmethod
    def rows(self) -> list[Row]:
        """The rows of the table."""

    @abstractmethod
    def _heading(self) -> str: ...

    def to_pandas(self) -> pandas.DataFrame:
        """The rows as a data frame; raises `MissingDependencyError` without pandas."""
        return frame(self.rows())

    def __repr__(self) -> str:
        return f"{self._heading()}\n{text_table(self.rows())}"

    def _repr_html_(self) -> str:
        return paragraph(self._heading()) + html_table(self.rows())


def overlay(
    picture: Image.Image, values: NDArray[Any], grid: PatchGrid, geometry: Geometry
) -> Image.Image:
    """A picture with a map (rows, cols) painted over it: the larger a positive value, the more
    opaque. The part that the model does not see stays plain."""
    strongest = float(values.max(initial=0.0))
    opacity = Image.new("L", picture.size)
    if strongest > 0:
        draw = ImageDraw.Draw(opacity)
        boxes = np.round(grid.boxes(geometry)).astype(int).tolist()
        for (x0, y0, x1, y1), value in zip(boxes, values.ravel().tolist(), strict=True):
            if value > 0 and x1 > x0 and y1 > y0:
                level = round(255 * _OPACITY * value / strongest)
                draw.rectangle((x0, y0, x1 - 1, y1 - 1), fill=level)
    return Image.composite(Image.new("RGB", picture.size, _HEAT), picture, opacity)

"""Tables and pictures of results."""

from __future__ import annotations

import base64
import io
import sys

import numpy as np
import pytest
from PIL import Image

from vision_sae.api import showing
from vision_sae.errors import MissingDependencyError
from vision_sae.models.grid import Geometry, PatchGrid

ROWS = [
    {"feature": 7, "value": 1.23456, "label": "a [red] <b>"},
    {"feature": 12, "value": None, "label": ""},
]


def test_a_table_for_a_terminal_is_aligned() -> None:
    assert showing.text_table(ROWS).splitlines() == [
        "feature  value  label",
        "      7  1.235  a [red] <b>",
        "     12",
    ]
    assert showing.text_table([]) == "(nothing)"
    wide = {f"column {i}": "x" * 50 for i in range(5)}
    assert showing.text_table([wide]).splitlines()[1] == "  ".join(["x" * 39 + "…"] * 5)


def test_a_table_for_a_notebook_is_escaped() -> None:
    table = showing.html_table([{"a<": "<script>", "b": Image.new("RGB", (2, 2))}])
    assert "<th>a&lt;</th>" in table
    assert "<td>&lt;script&gt;</td>" in table
    assert '<td><img src="data:image/jpeg;base64,' in table
    assert "<script>" not in table
    assert showing.html_table([]) == "<p>(nothing)</p>"


def test_a_picture_is_inline_and_small() -> None:
    tag = showing.img(Image.new("RGB", (1000, 500)), 'a "title"')
    data = tag.partition("base64,")[2].partition('"')[0]
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (256, 128)
    assert 'alt="a &quot;title&quot;"' in tag


def test_a_frame_without_pandas_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    assert showing.frame(ROWS)["feature"].tolist() == [7, 12]
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingDependencyError, match="pip install pandas"):
        showing.frame(ROWS)


def test_an_overlay_lies_where_the_patch_is() -> None:
    grid = PatchGrid(2, 2, 0, 8, 8)
    black = Image.new("RGB", (16, 16))
    values = np.array([[0.0, 1.0], [-1.0, 0.5]])
    painted = np.asarray(showing.overlay(black, values, grid, Geometry(16, 16, 1, 1, 0, 0)))
    # Opacity .65 of (255, 64, 0) where the map is largest, half of it at half the value.
    assert painted[0, 8:].max(0).tolist() == painted[7, 15].tolist() == [166, 42, 0]
    assert painted[8, 8].tolist() == [83, 21, 0]
    assert not painted[:, :8].any()


def test_an_overlay_of_nothing_is_the_picture() -> None:
    picture = Image.new("RGB", (16, 16), "blue")
    same = showing.overlay(
        picture, np.zeros((2, 2)), PatchGrid(2, 2, 0, 8, 8), Geometry(16, 16, 1, 1, 0, 0)
    )
    assert same.tobytes() == picture.tobytes()

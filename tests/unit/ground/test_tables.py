"""Tables for terminals, and for pipes."""

from __future__ import annotations

import sys

import pytest

from vision_sae.tables import table

HEADER, ROWS = ("rank", "label"), [("1", "a striped [cat]"), ("10", "dog")]


def test_a_piped_table_is_aligned_plain_text() -> None:
    assert table(HEADER, ROWS, right={0}).split("\n") == [
        "rank  label",
        "----  ---------------",
        "   1  a striped [cat]",
        "  10  dog",
    ]
    assert table(HEADER, ROWS, right={0}, rule=False).split("\n") == [
        "rank  label",
        "   1  a striped [cat]",
        "  10  dog",
    ]
    assert table(HEADER, []).split("\n") == ["rank  label", "----  -----"]


def test_a_pipe_gets_every_row_in_one_line() -> None:
    assert table(("label",), [("word " * 100 + "end",)]).count("\n") == 2


def test_a_terminal_gets_what_fits_into_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "12")
    monkeypatch.setenv("TERM", "xterm")
    lines = table(HEADER, ROWS, right={0}).split("\n")
    assert len(lines) > 4
    assert "\x1b[1m" in lines[0]

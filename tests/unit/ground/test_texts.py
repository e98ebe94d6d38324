from __future__ import annotations

import codecs
from pathlib import Path

import pytest

from vision_sae.errors import InvalidInputError, NotFoundError, VisionSaeError, quoted, shortened
from vision_sae.texts import in_columns, lines_of, read_lines, read_table, read_text

INSIDE = "\u2028\u2029\x85\v\f\x1c\x1d\x1e\r"
"""What `str.splitlines` takes for the end of a line, and no editor does."""


def write(folder: Path, data: bytes) -> Path:
    path = folder / "words.txt"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("character", INSIDE)
def test_lines_end_at_line_feeds_alone(character: str) -> None:
    assert [line.text for line in lines_of(f"a red{character}star\nmoon\n")] == [
        f"a red{character}star",
        "moon",
    ]


def test_lines_are_numbered_blank_ones_too() -> None:
    assert lines_of("a\r\n\nb") == [(1, "a"), (2, ""), (3, "b")]


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (b"", "utf-8"),
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
        (codecs.BOM_UTF32_BE, "utf-32-be"),
    ],
)
def test_encodings_are_known_by_their_marks(tmp_path: Path, mark: bytes, encoding: str) -> None:
    path = write(tmp_path, mark + "Hände\nй".encode(encoding))
    assert read_lines(path, "prompts") == [(1, "Hände"), (2, "й")]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"a cat\n" * 200_000 + b"caf\xe9\n", "line 200001: byte 0xe9 is no text in UTF-8"),
        (b"a\nb\0c", "line 2: a zero byte"),
        ("a cat".encode("utf-16-le"), "line 1: a zero byte"),
        (codecs.BOM_UTF16_LE + "a\nb".encode("utf-16-le") + b"\x00\xd8", "line 2: byte 0x00"),
    ],
)
def test_what_is_no_text_is_refused_in_one_line_with_its_number(
    tmp_path: Path, data: bytes, says: str
) -> None:
    with pytest.raises(InvalidInputError, match=f"words.txt, {says}") as refused:
        read_text(write(tmp_path, data), "prompts")
    assert refused.value.field == "prompts"
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400


def test_files_that_cannot_be_opened_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"none\.txt"):
        read_text(tmp_path / "none.txt", "prompts")
    with pytest.raises(InvalidInputError, match=f"{tmp_path.name} cannot be read"):
        read_text(tmp_path, "prompts")


def test_rows_of_a_table_have_the_number_of_the_line_they_begin_at(tmp_path: Path) -> None:
    path = write(tmp_path, b'file,caption\n\na.png,"two\nlines"\nb.png,\xe2\x80\xa8\n')
    assert list(read_table(path, "images")) == [
        (1, ["file", "caption"]),
        (3, ["a.png", "two\nlines"]),
        (5, ["b.png", "\u2028"]),
    ]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b'a,b\n1,"open\n2,x\n', "line 2: a quote is never closed"),
        (b'a,b\n1,x\n2,"y"z\n', "line 3: no comma-separated values"),
        (b"a,b\r1,x\r", "line 1: no comma-separated values"),
    ],
)
def test_tables_with_unsound_quotes_are_refused_by_line(
    tmp_path: Path, data: bytes, says: str
) -> None:
    with pytest.raises(InvalidInputError, match=f"words.txt, {says}"):
        list(read_table(write(tmp_path, data), "images"))


def test_unquoted_commas_belong_to_the_last_column_where_it_is_the_text() -> None:
    names = ["file", "caption"]
    assert in_columns(names, ["a", "x", " y"], "caption") == {"file": "a", "caption": "x, y"}
    assert in_columns(names, ["a", "x", "", " "], "caption") == {"file": "a", "caption": "x"}
    with pytest.raises(ValueError, match="3 fields for 2 columns"):
        in_columns(["caption", "file"], ["x", "y", "a"], "caption")
    with pytest.raises(ValueError, match="1 fields for 2 columns"):
        in_columns(names, ["a"], "caption")


def test_long_values_and_messages_lose_their_middle() -> None:
    assert shortened("short") == "short"
    assert shortened("a" * 50 + "z" * 50, 30) == "a" * 15 + " ... " + "z" * 10
    assert len(quoted("x" * 10_000)) == 120
    assert len(str(InvalidInputError("x" * 1_000_000))) == 1200


def test_a_message_can_always_be_printed_and_sent() -> None:
    assert str(VisionSaeError("caf\udce9.png is broken")) == "caf\\udce9.png is broken"

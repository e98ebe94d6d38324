"""Text files that people write: their encodings and line ends.

UTF-8 is read with or without a byte order mark, UTF-16 and UTF-32 only with one. A line ends at a
line feed, or at a carriage return and a line feed, and nowhere else: U+2028, U+0085 or a form feed
may be part of a caption or a prompt (`str.splitlines` would split there).
"""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from vision_sae.errors import InvalidInputError, NotFoundError, quoted

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # tried before UTF-16, whose mark is its prefix
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


class Line(NamedTuple):
    """One line of a text, without the line end."""

    number: int
    """Counted from 1."""
    text: str


def lines_of(text: str) -> list[Line]:
    """The lines of a text, including blank lines."""
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return [Line(number, line.removesuffix("\r")) for number, line in enumerate(lines, start=1)]


def read_text(path: Path, field: str) -> str:
    """Read a text file that a person wrote; ``field`` is the input that named the file.

    Raises `NotFoundError` when there is no such file, and `InvalidInputError`, with the file and
    the line, when the file is not text.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no file {path}", field=field) from error
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be read ({error.strerror})", field=field) from error
    mark, encoding = next((m for m in _MARKS if data.startswith(m[0])), (b"", "utf-8"))
    body = data[len(mark) :]
    try:
        text = body.decode(encoding)
    except UnicodeDecodeError as error:
        before = body[: error.start].decode(encoding, "replace")
        raise InvalidInputError(
            f"{path}, line {before.count(chr(10)) + 1}: byte 0x{body[error.start]:02x} is no text "
            f"in {encoding.upper()}; save the file as UTF-8",
            field=field,
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise InvalidInputError(
            f"{path}, line {line}: a zero byte is no text; save the file as UTF-8", field=field
        )
    return text


def read_lines(path: Path, field: str) -> list[Line]:
    """The lines of a file that a person wrote; see `read_text`."""
    return lines_of(read_text(path, field))


def read_table(path: Path, field: str) -> Iterator[tuple[int, list[str]]]:
    """(line, fields) of each row of a file of comma-separated values; the first row holds the
    column names, and empty lines are skipped.

    Raises as `read_text` does, and `InvalidInputError` for a quote that is never closed, which
    would swallow the rest of the file.
    """
    text = read_text(path, field)
    rows = csv.reader((line.text + "\n" for line in lines_of(text)), strict=True)
    while True:
        line = rows.line_num + 1
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            unclosed = "unexpected end of data" in str(error)
            what = "a quote is never closed" if unclosed else f"no comma-separated values ({error})"
            raise InvalidInputError(f"{path}, line {line}: {what}", field=field) from error
        if row:
            yield line, row


def in_columns(names: Sequence[str], row: list[str], text: str) -> dict[str, str]:
    """{column name: field} of a row.

    Unquoted commas belong to the column ``text`` if that column is the last one. Raises
    ``ValueError`` for a row with another number of fields.
    """
    fields = list(row)
    while len(fields) > len(names) and not fields[-1].strip():
        fields.pop()  # spreadsheets append empty fields
    last = len(names) - 1
    if len(fields) > len(names) and names[last] == text:
        fields[last:] = [",".join(fields[last:])]
    if len(fields) != len(names):
        raise ValueError(
            f"{len(fields)} fields for {len(names)} columns in {quoted(row)} (put quotes around a "
            "field with commas)"
        )
    return dict(zip(names, fields, strict=True))


def has_lone_surrogate(text: str) -> bool:
    r"""Whether a string holds half of a surrogate pair, as JSON's ``"\ud800"`` does; no file and no
    message can carry such a string."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def examples(problems: list[tuple[int, str]]) -> str:
    """The first three problems, and the number of further ones: ``line 2: no caption; ...``."""
    shown = "; ".join(f"line {number}: {what}" for number, what in problems[:3])
    more = len(problems) - 3
    return f"{shown}; and {more} more lines" if more > 0 else shown

"""Text files that people write: their encodings, and where their lines end.

UTF-8 is read, with a byte order mark or without, and UTF-16 and UTF-32 with one. A line ends at a
line feed or at a carriage return and a line feed, and nowhere else: U+2028, U+0085 or a form feed
inside a caption or a prompt is a part of it (`str.splitlines` would cut there).
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
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


class Line(NamedTuple):
    """One line of a text, without its end."""

    number: int
    """Counted from 1."""
    text: str


def lines_of(text: str) -> list[Line]:
    """The lines of a text, blank ones too."""
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return [Line(number, line.removesuffix("\r")) for number, line in enumerate(lines, start=1)]


def read_text(path: Path, field: str) -> str:
    """The text of a file that a person wrote.

    Raises `NotFoundError` without such a file, and `InvalidInputError` that names the file and, for
    what is no text, the line; ``field`` is the input that named the file.
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
    """(line, fields) of each row of a file of comma-separated values, the names of its columns
    first; empty lines are passed over.

    Raises as `read_text` does, also for a quote that is never closed: it would swallow the rest.
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
    """The fields of a row by the names of their columns.

    Commas that nobody quoted belong to the column ``text`` when it is the last one. Raises
    ``ValueError`` that says what is wrong with the row.
    """
    fields = list(row)
    while len(fields) > len(names) and not fields[-1].strip():
        fields.pop()  # spreadsheets write empty fields behind
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
    r"""Whether a string holds half of a surrogate pair, as JSON's ``"\ud800"`` does: no file and no
    message can carry it."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def examples(problems: list[tuple[int, str]]) -> str:
    """``line 2: no caption; line 5: ...`` of the first three problems, and how many more."""
    shown = "; ".join(f"line {number}: {what}" for number, what in problems[:3])
    more = len(problems) - 3
    return f"{shown}; and {more} more lines" if more > 0 else shown

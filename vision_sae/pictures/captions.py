"""Captions of the pictures of a folder: the sidecar file, and the picture that each row names.

The sidecar is ``captions.jsonl``: objects with ``file``, ``caption`` (a text, or a list of texts)
and optionally a list of ``tags`` and a ``source``; or ``captions.csv`` with the columns ``file``
and ``caption``, in any order and letter case. If the caption is the last column of a CSV, unquoted
commas belong to the caption.

``file`` is relative to the folder. A row names the picture with exactly this path. If there is
none, it names the only picture whose path differs by ``./``, ``\\``, surrounding spaces or the
encoding of accents; then by letter case; then by a missing suffix. Several captions of one picture
are joined by "; " without repetitions, and the tags of all rows are merged.

Rows that name no picture, or several, are ignored and reported with their lines. A sidecar with a
line that cannot be parsed is refused, and the message names the line.
"""

from __future__ import annotations

import json
import posixpath
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vision_sae.errors import InvalidInputError, quoted, shortened
from vision_sae.texts import (
    examples,
    has_lone_surrogate,
    in_columns,
    read_lines,
    read_table,
)

CAPTIONS_JSONL = "captions.jsonl"
CAPTIONS_CSV = "captions.csv"
_KEYS = frozenset({"file", "caption", "tags", "source", "license"})
"""The known keys of a JSON line; the license is for human readers."""


class CaptionRecord(NamedTuple):
    """The caption, tags and source of one picture."""

    caption: str = ""
    tags: tuple[str, ...] = ()
    source: str = ""


class Row(NamedTuple):
    """One row of a sidecar."""

    line: int
    file: str
    captions: tuple[str, ...]
    tags: tuple[str, ...] = ()
    source: str = ""


class Sidecar(NamedTuple):
    """The content of a sidecar file."""

    path: Path | None
    """None when the folder has no sidecar."""
    rows: list[Row]
    remarks: list[str]
    """Keys, columns and files that are ignored, one sentence each."""


def read_sidecar(folder: Path) -> Sidecar:
    """Read the sidecar of a folder; the result is empty when there is none.

    Raises `InvalidInputError`, with the file and the lines that cannot be read.
    """
    jsonl, table = folder / CAPTIONS_JSONL, folder / CAPTIONS_CSV
    if jsonl.is_file():
        sidecar = _read(jsonl, _json_rows)
        if table.is_file():
            sidecar.remarks.append(f"{table} is not read, since {CAPTIONS_JSONL} is there")
        return sidecar
    return _read(table, _csv_rows) if table.is_file() else Sidecar(None, [], [])


def _read(
    path: Path, rows_of: Callable[[Path, set[str]], Iterator[tuple[int, Row | str]]]
) -> Sidecar:
    unread: set[str] = set()
    rows = list(rows_of(path, unread))
    bad = [(line, row) for line, row in rows if isinstance(row, str)]
    if bad:
        raise InvalidInputError(
            f"the captions {path} cannot be read, {len(bad)} of {len(rows)} lines: "
            f"{examples(bad)}. Every line needs `file` and `caption`",
            field="images",
        )
    remarks = []
    if unread:
        names = shortened(", ".join(map(quoted, sorted(unread))))
        instead = f"; {CAPTIONS_JSONL} can give tags and a source" if unread & _KEYS else ""
        remarks.append(f"{path}: nothing reads {names}{instead}")
    return Sidecar(path, [row for _, row in rows if isinstance(row, Row)], remarks)


def _json_rows(path: Path, unread: set[str]) -> Iterator[tuple[int, Row | str]]:
    """(line, its row or its fault) of each line; unknown keys are added to ``unread``."""
    for number, line in read_lines(path, "images"):
        if not line.strip():
            continue
        try:
            value = json.loads(line, object_pairs_hook=_distinct)
            yield number, _row(number, value)
            unread |= value.keys() - _KEYS
        except json.JSONDecodeError as error:
            yield number, f"no JSON ({error.msg}, column {error.colno})"
        except (ValueError, RecursionError) as error:
            yield number, shortened(str(error))


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError(f"a key stands twice in {quoted(pairs)}")
    return value


def _row(line: int, value: Any) -> Row:
    if not isinstance(value, dict):
        raise ValueError(f"no object but {quoted(value)}")
    for key in ("file", "caption"):
        if key not in value:
            raise ValueError(f"no {key!r} in {quoted(value)}")
    captions = value["caption"] if isinstance(value["caption"], list) else [value["caption"]]
    tags, source = value.get("tags", []), value.get("source", "")
    texts = (value["file"], *captions, source, *(tags if isinstance(tags, list) else [None]))
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"not text: {quoted(value)}")
    if any(map(has_lone_surrogate, texts)):
        raise ValueError(f"half of a surrogate pair in {quoted(value)}")
    return Row(line, value["file"], tuple(captions), tuple(tags), source)


def _csv_rows(path: Path, unread: set[str]) -> Iterator[tuple[int, Row | str]]:
    rows = read_table(path, "images")
    head, columns = next(rows, (1, []))
    names = [name.strip().casefold() for name in columns]
    for wanted in ("file", "caption"):
        if names.count(wanted) != 1:
            count = names.count(wanted)
            yield head, f"{count} columns {wanted!r} in {quoted(columns)} (commas part columns)"
            return
    unread |= set(names) - {"file", "caption", "license"}
    for line, fields in rows:
        try:
            values = in_columns(names, fields, "caption")
            yield line, Row(line, values["file"], (values["caption"],))
        except ValueError as error:
            yield line, str(error)


def _path(file: str) -> str:
    parts = posixpath.normpath(file.strip().replace("\\", "/"))
    return unicodedata.normalize("NFC", parts)


def _caseless(file: str) -> str:
    return unicodedata.normalize("NFC", _path(file).casefold())


def _stem(file: str) -> str:
    return posixpath.splitext(file)[0]


def _same(file: str) -> str:
    return file


_SPELLINGS: tuple[Callable[[str], str], ...] = (_same, _path, _caseless)


class _Names:
    """A lookup of pictures by the spellings of their names."""

    def __init__(self, ids: Sequence[str]) -> None:
        self._ids = ids
        self._by: dict[tuple[int, bool], dict[str, list[str]]] = {}

    def meant(self, file: str) -> list[str]:
        """The pictures that ``file`` names, by the strictest rule that yields any."""
        for without_suffix in (False, True):
            for number, spelling in enumerate(_SPELLINGS):
                if pictures := self._table(number, without_suffix).get(spelling(file)):
                    return pictures
        return []

    def _table(self, number: int, without_suffix: bool) -> dict[str, list[str]]:
        """{spelling: pictures}, computed on first use: most rows need only the first table."""
        if (number, without_suffix) not in self._by:
            table: dict[str, list[str]] = defaultdict(list)
            for name in self._ids:
                table[_SPELLINGS[number](_stem(name) if without_suffix else name)].append(name)
            self._by[number, without_suffix] = dict(table)
        return self._by[number, without_suffix]


def captions_of(sidecar: Sidecar, ids: Sequence[str]) -> tuple[dict[str, CaptionRecord], list[str]]:
    """({picture: its caption record}, remarks on the rows that match no picture, by cause)."""
    names, rows = _Names(ids), defaultdict[str, list[Row]](list)
    nameless, unknown, unclear, torn = [], [], [], []
    for row in sidecar.rows:
        meant = names.meant(row.file) if row.file.strip() else []
        if len(meant) == 1:
            rows[meant[0]].append(row)
        elif meant:
            unclear.append((row.line, f"{quoted(row.file)} may be {quoted(meant[0])} or others"))
        elif row.file.strip():
            unknown.append((row.line, quoted(row.file)))
        else:
            nameless.append((row.line, quoted("; ".join(row.captions))))
    for name, of_one in rows.items():
        sources = dict.fromkeys(row.source for row in of_one if row.source)
        if len(sources) > 1:
            torn.append((of_one[1].line, f"{quoted(name)} has the sources {quoted([*sources])}"))
    remarks = [
        f"{sidecar.path}: captions that {what}: {len(lines)} ({examples(lines)})"
        for what, lines in (
            ("name no file", nameless),
            ("match no picture", unknown),
            ("match several pictures", unclear),
            ("give a picture several sources, of which the first counts", torn),
        )
        if lines
    ]
    return {name: _joined(of_one) for name, of_one in rows.items()}, remarks


def _joined(rows: Iterable[Row]) -> CaptionRecord:
    rows = list(rows)
    captions = dict.fromkeys(text for row in rows for text in row.captions if text.strip())
    tags = dict.fromkeys(tag for row in rows for tag in row.tags)
    source = next((row.source for row in rows if row.source), "")
    return CaptionRecord("; ".join(captions), tuple(tags), source)

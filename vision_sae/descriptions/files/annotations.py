"""Tables of texts for units, as MILAN has them.

People's words: ``annotations.csv`` with the columns layer, unit and summary, several rows a unit.
What a describer says: the columns layer, unit and description, one row a unit. Layers are strings,
also where they look like numbers. Further columns are not read.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from vision_sae.errors import InvalidInputError, quoted
from vision_sae.files import replacing
from vision_sae.places import check_output_file
from vision_sae.texts import in_columns, read_table

SUMMARY = "summary"
DESCRIPTION = "description"
_DIGITS = 12
"""Of the number of a unit, at most."""


def _rows(path: Path) -> Iterator[tuple[int, str, str, int, str]]:
    """(line, name of the column of texts, layer, unit, text) of each row of a table."""
    rows = read_table(path, "labels")
    _, names = next(rows, (1, []))
    column = SUMMARY if SUMMARY in names and DESCRIPTION not in names else DESCRIPTION
    for name in ("layer", "unit", column):
        if names.count(name) != 1:
            raise InvalidInputError(
                f"{path} has {names.count(name) or 'no'} column {name!r}; it needs layer, unit and "
                f"{DESCRIPTION}, or {SUMMARY} for the words of several people",
                field="labels",
            )
    for line, fields in rows:
        try:
            row = in_columns(names, fields, column)
            yield line, column, row["layer"], _unit(row["unit"]), row[column]
        except ValueError as error:
            raise InvalidInputError(
                f"{path}, line {line}: a row is a layer, the number of a unit and a text; {error}",
                field="labels",
            ) from error


def _unit(text: str) -> int:
    if not text.strip().isdecimal() or len(text) > _DIGITS:
        raise ValueError(f"{quoted(text)} is no number of a unit")
    return int(text)


def read_annotations(path: Path) -> dict[str, list[dict[int, str]]]:
    """{layer: its lists of {unit: text}} of either table.

    Of what a describer says there is one list. Of people's words there are as many as a unit has at
    most: the nth holds the nth text of each unit. Rows without a text are left out.

    Raises `InvalidInputError` with the line for what is neither.
    """
    found: dict[str, list[dict[int, str]]] = {}
    for line, column, layer, unit, text in _rows(path):
        lists = found.setdefault(layer, [])
        number = sum(unit in texts for texts in lists)
        if number and column == DESCRIPTION:
            raise InvalidInputError(
                f"{path}, line {line}: unit {unit} of layer {layer} has a text already; texts of "
                f"several people belong in a column {SUMMARY!r}",
                field="labels",
            )
        if text.strip():
            lists += [{}] if number == len(lists) else []
            lists[number][unit] = text
    return found


def lists_of(
    tables: Mapping[str, list[dict[int, str]]], site: str, parent: str
) -> list[dict[int, str]]:
    """The lists of one layer of `read_annotations`, which may be called as the site is, or as the
    last part of its units' parent: `write_descriptions` of a dictionary's labels has its name."""
    return tables.get(site) or tables.get(parent.rpartition("/")[2]) or []


def write_descriptions(
    path: Path, rows: Iterable[tuple[str, int, str]], *, overwrite: bool = False
) -> None:
    """Write (layer, unit, description) rows, whole or not at all; an earlier file is replaced only
    with ``overwrite``."""
    check_output_file(path, overwrite=overwrite)
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("layer", "unit", DESCRIPTION))
        table.writerows(rows)

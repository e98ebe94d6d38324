"""Tables of texts for units in MILAN's format.

Annotations by people are in ``annotations.csv`` with the columns layer, unit and summary, and
several rows per unit. Labels of a describer have the columns layer, unit and description, and one
row per unit. Layers are strings, even if they look like numbers. Other columns are ignored.
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
"""Most digits in the number of a unit."""


def _rows(path: Path) -> Iterator[tuple[int, str, str, int, str]]:
    """(line, name of the column of texts, layer, unit, text) of each row of a table."""
    rows = read_table(path, "labels")
    _, names = next(rows, (1, []))
    column = SUMMARY if SUMMARY in names and DESCRIPTION not in names else DESCRIPTION
    for name in ("layer", "unit", column):
        if names.count(name) != 1:
            raise InvalidInputError(
                f"{path} has {names.count(name) or 'no'} column {name!r}; it needs layer, unit and "
                f"{DESCRIPTION}, or {SUMMARY} for texts by several people",
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
        raise ValueError(f"{quoted(text)} is not the number of a unit")
    return int(text)


def read_annotations(path: Path) -> dict[str, list[dict[int, str]]]:
    """Read {layer: [{unit: text}, ...]} from either table.

    A describer's table has one mapping per layer. A table by people has as many mappings as the
    largest number of texts of a unit: the nth mapping holds the nth text of each unit. Rows without
    a text are left out.

    Raises `InvalidInputError`, which names the line, for any other content.
    """
    tables: dict[str, list[dict[int, str]]] = {}
    for line, column, layer, unit, text in _rows(path):
        lists = tables.setdefault(layer, [])
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
    return tables


def lists_of(
    tables: Mapping[str, list[dict[int, str]]], site: str, parent: str
) -> list[dict[int, str]]:
    """The mappings of one layer of `read_annotations`.

    A table may name the layer after the site, or after the last part of the units' parent: exported
    labels of a dictionary carry the dictionary's name.
    """
    return tables.get(site) or tables.get(parent.rpartition("/")[2]) or []


def write_descriptions(
    path: Path, rows: Iterable[tuple[str, int, str]], *, overwrite: bool = False
) -> None:
    """Write (layer, unit, description) rows atomically; ``overwrite`` allows replacing a file."""
    check_output_file(path, overwrite=overwrite)
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("layer", "unit", DESCRIPTION))
        table.writerows(rows)

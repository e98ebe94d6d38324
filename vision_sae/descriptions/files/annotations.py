"""Tables of texts for units, as MILAN has them.

People's words: ``annotations.csv`` with the columns layer, unit and summary, several rows a unit.
What a describer says: the columns layer, unit and description, one row a unit. Layers are strings,
also where they look like numbers.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path

from vision_sae.errors import InvalidInputError, NotFoundError
from vision_sae.files import replacing

ANNOTATIONS = "annotations.csv"
SUMMARY = "summary"
DESCRIPTION = "description"


def _rows(path: Path, column: str) -> Iterator[tuple[int, str, int, str]]:
    """(line, layer, unit, text) of each row of a table."""
    if not path.is_file():
        raise NotFoundError(f"there is no {path}", field="labels")
    with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets begin with a mark
        table = csv.DictReader(file)
        wanted = ("layer", "unit", column)
        try:
            missing = [name for name in wanted if name not in (table.fieldnames or ())]
            if missing:
                raise InvalidInputError(
                    f"{path} has no column {missing[0]!r}; it needs {', '.join(wanted)}",
                    field="labels",
                )
            for row in table:
                layer, unit, text = (row[name] for name in wanted)
                if text is None or not unit.isdecimal():
                    raise InvalidInputError(
                        f"{path}, line {table.line_num}: a row is a layer, the number of a unit "
                        f"and a text, not {row}",
                        field="labels",
                    )
                yield table.line_num, layer, int(unit), text
        except (csv.Error, UnicodeDecodeError) as error:
            raise InvalidInputError(
                f"{path} is not CSV in UTF-8 ({error})", field="labels"
            ) from error


def read_annotations(path: Path, column: str = SUMMARY) -> dict[tuple[str, int], list[str]]:
    """{(layer, unit): its texts, in their order}.

    Raises `InvalidInputError` with the line for what is no such table.
    """
    found: dict[tuple[str, int], list[str]] = {}
    for _, layer, unit, text in _rows(path, column):
        found.setdefault((layer, unit), []).append(text)
    return found


def read_descriptions(path: Path, column: str = DESCRIPTION) -> dict[str, dict[int, str]]:
    """{layer: {unit: its text}} of a table with one row a unit; rows without a text are left out.

    Raises `InvalidInputError` with the line for what is no such table.
    """
    found: dict[str, dict[int, str]] = {}
    for line, layer, unit, text in _rows(path, column):
        if unit in found.setdefault(layer, {}):
            raise InvalidInputError(
                f"{path}, line {line}: unit {unit} of layer {layer} has a text already",
                field="labels",
            )
        found[layer][unit] = text
    return {
        layer: {unit: text for unit, text in texts.items() if text.strip()}
        for layer, texts in found.items()
    }


def write_descriptions(path: Path, rows: Iterable[tuple[str, int, str]]) -> None:
    """Write (layer, unit, description) rows, whole or not at all."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("layer", "unit", DESCRIPTION))
        table.writerows(rows)

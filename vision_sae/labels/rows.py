"""Conversion of descriptions to and from database rows, and shared parts of queries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import RowMapping

from vision_sae.descriptions.protocol import JUDGED_BY, Description
from vision_sae.files import sha256_json
from vision_sae.labels.database import descriptions, units
from vision_sae.labels.entries import PERSON, Entry, Unit, description_from_json

_BATCH = 500
"""Largest number of values in one IN (...); databases limit the parameters of a statement."""
HELD = sa.select(units.c.number, units.c.current).where(
    units.c.parent == sa.bindparam("parent"),
    units.c.number.in_(sa.bindparam("numbers", expanding=True)),
    units.c.current.is_not(None),
)
"""The current versions of the units ``numbers`` of ``parent``. Every answer runs this query."""
JUDGE = sa.func.coalesce(
    descriptions.c.details[JUDGED_BY].as_string(),
    sa.case((sa.and_(descriptions.c.origin == PERSON, descriptions.c.text.is_not(None)), PERSON)),
    "",
)
"""The judge who confirmed a description, or empty. A person's text counts as confirmed by a person;
stores of earlier versions do not record that, so the expression adds it."""


def batches(values: Sequence[int]) -> Iterator[Sequence[int]]:
    """Cut values into batches that one statement can take as parameters."""
    for start in range(0, len(values), _BATCH):
        yield values[start : start + _BATCH]


def is_unit(unit: Unit) -> sa.ColumnElement[bool]:
    """The condition that a row of ``units`` is this unit."""
    return sa.and_(units.c.parent == unit.parent, units.c.number == unit.index)


def select_versions() -> sa.Select[Any]:
    """A select of all versions of descriptions with their units."""
    return sa.select(units.c.parent, units.c.number, *descriptions.c).join(
        units, descriptions.c.unit == units.c.id
    )


def entry_of(row: RowMapping) -> Entry:
    """The entry in a row of `select_versions`."""
    by_person = row["origin"] == PERSON and row["text"] is not None
    details = ({JUDGED_BY: PERSON} if by_person else {}) | row["details"]
    return Entry(
        unit=Unit(row["parent"], row["number"]),
        description=description_from_json({"feature": row["number"], **row, "details": details}),
        origin=row["origin"],
        author=row["author"],
        identity=row["identity"],
        created=datetime.fromtimestamp(row["created"], UTC),
        etag=row["etag"],
    )


def content_of(description: Description) -> dict[str, Any]:
    """The columns of a description's row, without its unit."""
    return {
        "text": description.text,
        "abstained": description.abstained,
        "describer": description.describer,
        "describer_version": description.describer_version,
        "scores": [dict(vars(score)) for score in description.scores],
        "evidence": list(description.evidence),
        "details": description.details,
        "candidates": [list(candidate) for candidate in description.candidates],
    }


def digest(content: Mapping[str, Any], identity: str) -> str:
    """Hex SHA-256 of a description's content and of the identity of its evidence."""
    return sha256_json([identity, content])

"""Records of the label store: units, versions of their descriptions, and summaries."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NamedTuple, Self

from vision_sae.descriptions.protocol import Description, Score
from vision_sae.errors import InvalidInputError

Origin = Literal["describer", "person", "imported"]
PERSON: Origin = "person"
"""The origin of a text that a person wrote, and the judge who confirmed that text."""

_UNIT = re.compile(
    r"(?P<dictionary>dictionaries/[^/]+)/features/(?P<feature>\d{1,9})"
    r"|(?P<site>models/[^/]+/sites/[^/]+)/units/(?P<unit>\d{1,9})"
)


@dataclass(frozen=True, order=True)
class Unit:
    """One feature of a dictionary or one neuron of a site."""

    parent: str
    """``dictionaries/{dictionary}`` or ``models/{model}/sites/{site}``, the name of the
    evidence."""
    index: int

    @classmethod
    def parse(cls, resource: str) -> Self:
        """The unit of a resource name. Raises `InvalidInputError` for a name of another kind."""
        match = _UNIT.fullmatch(resource)
        if match is None:
            raise InvalidInputError(
                f"{resource!r} names no unit; write dictionaries/NAME/features/INDEX or "
                "models/MODEL/sites/SITE/units/INDEX",
                field="unit",
            )
        parent, index = match["dictionary"] or match["site"], match["feature"] or match["unit"]
        return cls(parent, int(index))

    @property
    def resource(self) -> str:
        """The resource name."""
        kind = "features" if self.parent.startswith("dictionaries/") else "units"
        return f"{self.parent}/{kind}/{self.index}"


@dataclass(frozen=True)
class Entry:
    """One version of a unit's description, as stored."""

    unit: Unit
    description: Description
    origin: Origin
    author: str
    """The person who wrote the description; empty for describers."""
    identity: str
    """The identity of the evidence behind the description; empty when unknown."""
    created: datetime
    """UTC."""
    etag: str
    """A tag that is unique to this version, across all units."""


class Outline(NamedTuple):
    """The fields of a current description by which units are filtered and ordered."""

    text: str | None
    describer: str
    origin: Origin
    author: str
    scores: tuple[Score, ...]
    judged_by: str


class TextHit(NamedTuple):
    """A unit whose current text matches a search."""

    unit: Unit
    rank: float
    """Higher is better. Ranks of different searches cannot be compared."""


@dataclass(frozen=True)
class Summary:
    """Counts of described units of one parent."""

    described: int
    """Units whose current description has a text."""
    confirmed: int
    """Described units whose text a judge has confirmed; all other texts are guesses."""
    abstained: int
    """Units whose current description is an abstention."""
    by_people: int
    """Units whose current description a person wrote."""
    describers: tuple[str, ...]
    """Names of the describers that wrote the other descriptions."""


def description_from_json(row: Mapping[str, Any]) -> Description:
    """Read a description from the JSON form of ``dataclasses.asdict``."""
    return Description(
        feature=row["feature"],
        text=row["text"],
        abstained=row["abstained"],
        describer=row["describer"],
        describer_version=row["describer_version"],
        scores=tuple(Score(**score) for score in row["scores"]),
        evidence=tuple(row["evidence"]),
        details=dict(row["details"]),
        candidates=tuple((text, value) for text, value in row.get("candidates", ())),
    )

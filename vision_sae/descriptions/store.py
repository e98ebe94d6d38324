"""The label store: every description a unit ever had, and which one holds.

A unit is named by its resource, ``dictionaries/X/features/12`` or ``models/M/sites/S/units/5``.
Descriptions are never changed: a new one is added, and the newest holds. One exception: what a
person wrote is replaced by people only; a describer's newer text then goes to the history at once.
"""

from __future__ import annotations

import re
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import sqlalchemy as sa
from cachetools import LRUCache
from sqlalchemy.engine import Connection, RowMapping

from vision_sae.bundles.bundle import Bundle
from vision_sae.descriptions.database import Database, about, descriptions, units
from vision_sae.descriptions.evidence.bundle import BundleEvidence
from vision_sae.descriptions.evidence.protocol import Evidence
from vision_sae.descriptions.full_text import index_texts, matches, words
from vision_sae.descriptions.protocol import JUDGED_BY, Description, Score
from vision_sae.errors import ConflictError, InvalidInputError
from vision_sae.files import sha256_json

Origin = Literal["describer", "person", "imported"]
PERSON: Origin = "person"
"""Who wrote an edit, and the judge who has confirmed it."""
MOST_CHARACTERS = 500
"""Length of a text or of a reason to abstain."""

_UNIT = re.compile(
    r"(?P<dictionary>dictionaries/[^/]+)/features/(?P<feature>\d{1,9})"
    r"|(?P<site>models/[^/]+/sites/[^/]+)/units/(?P<unit>\d{1,9})"
)
_BATCH = 500
"""Values in one IN (...): databases limit the parameters of a statement."""
_HELD = sa.select(units.c.number, units.c.current).where(
    units.c.parent == sa.bindparam("parent"),
    units.c.number.in_(sa.bindparam("numbers", expanding=True)),
    units.c.current.is_not(None),
)
"""Which versions hold, of some ``numbers`` of a ``parent``: asked for in every answer."""
_JUDGE = sa.func.coalesce(
    descriptions.c.details[JUDGED_BY].as_string(),
    sa.case((sa.and_(descriptions.c.origin == PERSON, descriptions.c.text.is_not(None)), PERSON)),
    "",
)
"""The judge who confirmed a description; empty where none did. Whoever wrote a text has confirmed
it, which stores of earlier versions do not say."""
_KEPT = 4096
"""Entries kept ready: a version never changes, and its number is given once."""


@dataclass(frozen=True, order=True)
class Unit:
    """One feature of a dictionary or one neuron of a site."""

    parent: str
    """``dictionaries/{dictionary}`` or ``models/{model}/sites/{site}``: the evidence's name."""
    index: int

    @classmethod
    def parse(cls, resource: str) -> Self:
        """The unit of a resource name."""
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
    """The person who wrote it; empty for describers."""
    identity: str
    """The identity of the evidence it was made from; empty where that is not known."""
    created: datetime
    """UTC."""
    etag: str
    """Names this version and no other, of any unit."""


class Outline(NamedTuple):
    """What of a current description units are filtered and ordered by."""

    text: str | None
    describer: str
    origin: Origin
    author: str
    scores: tuple[Score, ...]
    judged_by: str


class Hit(NamedTuple):
    """A unit whose text was found."""

    unit: Unit
    rank: float
    """Higher is better; comparable within one search only."""


@dataclass(frozen=True)
class Summary:
    """How far the units of one parent are described."""

    described: int
    """Units whose current description has a text."""
    confirmed: int
    """Those of them whose text a judge has confirmed; the texts of the others are guesses."""
    abstained: int
    """Units whose current description is an abstention."""
    by_people: int
    """Units whose current description a person wrote."""
    describers: tuple[str, ...]
    """Those who made the others, by name."""


class LabelStore:
    """Descriptions of units, with history and full-text search. Safe to share between threads."""

    def __init__(self, database: Database | str | Path) -> None:
        """Open a store in ``database``, or at its path or URL; it is made where there is none."""
        self.database = database if isinstance(database, Database) else Database(database)
        self._kept: LRUCache[int, Entry] = LRUCache(_KEPT)
        self._keeping = threading.Lock()

    def close(self) -> None:
        """Close all connections."""
        self.database.close()

    # Writing

    def add(
        self,
        parent: str,
        made: Iterable[Description],
        *,
        identity: str,
        origin: Origin = "describer",
    ) -> None:
        """Store what a describer made, or a file of labels brought, of units of ``parent``.

        ``identity`` is that of the evidence it was made from. All of it is stored, or nothing.
        """
        with self.database.writing() as connection:
            self.add_within(connection, parent, list(made), identity=identity, origin=origin)

    def add_within(
        self,
        connection: Connection,
        parent: str,
        made: Sequence[Description],
        *,
        identity: str,
        origin: Origin = "describer",
        author: str = "",
        older: bool = False,
    ) -> list[int]:
        """`add` within a writing transaction of the caller; gives the ids of the rows.

        What is ``older`` than all that the store has goes to the history of units that have a
        description made from the same evidence, and holds for the others.
        """
        _check_texts(made)
        known = self._units(connection, parent, [d.feature for d in made])
        now = self.database.clock()
        contents = map(_content, made)
        rows = [
            content
            | {
                "unit": known[description.feature].id,
                "origin": origin,
                "author": author,
                "identity": identity,
                "digest": _digest(content, identity),
                "etag": uuid.uuid4().hex,
                "created": now,
            }
            for description, content in zip(made, contents, strict=True)
        ]
        if not rows:
            return []
        insert = descriptions.insert().returning(descriptions.c.id, sort_by_parameter_order=True)
        ids = list(connection.execute(insert, rows).scalars())
        holding = [
            (id_, row)
            for id_, row, description in zip(ids, rows, made, strict=True)
            if _holds(origin, known[description.feature], identity if older else None)
        ]
        if holding:
            change = units.update().where(units.c.id == sa.bindparam("unit"))
            connection.execute(
                change.values(current=sa.bindparam("row")),
                [{"row": id_, "unit": row["unit"]} for id_, row in holding],
            )
            index_texts(connection, {row["unit"]: row["text"] for _, row in holding})
        return ids

    def edit(
        self,
        unit: Unit,
        text: str | None,
        *,
        abstained: str = "",
        author: str = "",
        etag: str = "",
        identity: str = "",
    ) -> Entry:
        """Store what a person wrote: a text, which counts as confirmed by a person, or None and
        the reason why there is none. ``identity`` is that of the evidence the person was shown,
        where it is known.

        Raises `ConflictError` when ``etag`` is given and is not that of the current version.
        """
        judged = {JUDGED_BY: PERSON} if text else {}
        reason = "" if text else abstained
        description = Description(unit.index, text, reason, "", 0, details=judged)
        with self.database.writing() as connection:
            if etag:
                self._check_etag(connection, unit, etag)
            self.add_within(
                connection,
                unit.parent,
                [description],
                identity=identity,
                origin=PERSON,
                author=author,
            )
            (entry,) = self._entries(connection, _is_unit(unit), current=True)
        return entry

    def import_bundle(self, bundle: Bundle) -> int:
        """Take over the descriptions of a bundle; gives how many were new.

        One that was taken over before, from the same evidence, is not taken over again: it may
        have been replaced since. Nor does the first bundle of a name replace what the store says
        already, which was made from the bundle. Where another dictionary had the bundle's name
        before, what was said of its features goes to the history, whoever said it.
        """
        evidence = BundleEvidence(bundle)
        made = [description_from_json(row) for _, row in sorted(bundle.descriptions.items())]
        with self.database.writing() as connection:
            first = self._make_way(connection, evidence, bundle.dictionary_sha256)
            known = set(
                connection.execute(
                    sa.select(units.c.number, descriptions.c.digest)
                    .join(units, descriptions.c.unit == units.c.id)
                    .where(units.c.parent == evidence.name)
                    .where(descriptions.c.identity == evidence.identity)
                ).tuples()
            )
            new = [
                description
                for description in made
                if (description.feature, _digest(_content(description), evidence.identity))
                not in known
            ]
            identity = evidence.identity
            self.add_within(connection, evidence.name, new, identity=identity, older=first)
        return len(new)

    @staticmethod
    def _make_way(connection: Connection, evidence: Evidence, dictionary: str) -> bool:
        """Note which ``dictionary`` the units of ``evidence`` are of; if it was another one, what
        was not said of this evidence holds no longer. Returns whether none was noted before."""
        key = f"dictionary of {sha256_json(evidence.name)[:40]}"
        noted = connection.scalar(sa.select(about.c.value).where(about.c.key == key))
        if noted == dictionary:
            return False
        connection.execute(about.delete().where(about.c.key == key))
        connection.execute(about.insert(), {"key": key, "value": dictionary})
        if noted is None:
            return True
        stale = sa.select(units.c.id).join(descriptions, units.c.current == descriptions.c.id)
        stale = stale.where(units.c.parent == evidence.name)
        stale = stale.where(descriptions.c.identity != evidence.identity)
        ids = list(connection.execute(stale).scalars())
        for batch in _batches(ids):
            connection.execute(units.update().where(units.c.id.in_(batch)).values(current=None))
            index_texts(connection, dict.fromkeys(batch))
        return False

    # Reading

    def parents(self) -> list[str]:
        """The dictionaries and sites that have units with a description, in order."""
        select = sa.select(units.c.parent).where(units.c.current.is_not(None)).distinct()
        with self.database.reading() as connection:
            return sorted(connection.execute(select).scalars())

    def current(self, unit: Unit) -> Entry | None:
        """The description that holds; None when nobody tried."""
        return self.currents(unit.parent, [unit.index]).get(unit.index)

    def currents(self, parent: str, indices: Iterable[int] | None = None) -> dict[int, Entry]:
        """{index: the description that holds} of some units of ``parent``, or of all."""
        with self.database.reading() as connection:
            if indices is None:
                found = self._entries(connection, units.c.parent == parent, current=True)
                return {entry.unit.index: entry for entry in found}
            held = {
                number: row
                for chunk in _batches(sorted(set(indices)))
                for number, row in connection.execute(_HELD, {"parent": parent, "numbers": chunk})
            }
            with self._keeping:
                known = {row: self._kept[row] for row in held.values() if row in self._kept}
            unread = self.entries_by_id(connection, set(held.values()) - known.keys())
        with self._keeping:
            self._kept.update(unread)
        known |= unread
        return {number: known[row] for number, row in held.items()}

    def outlines(self, parent: str) -> dict[int, Outline]:
        """{index: outline of the description that holds} of all units of ``parent``."""
        columns: list[sa.ColumnElement[Any]] = [
            descriptions.c[name] for name in Outline._fields if name != JUDGED_BY
        ]
        select = (
            sa.select(*[units.c.number, *columns, _JUDGE])
            .join(units, units.c.current == descriptions.c.id)
            .where(units.c.parent == parent)
        )
        with self.database.reading() as connection:
            rows = connection.execute(select).all()
        return {
            number: Outline(text, by, origin, author, tuple(Score(**s) for s in scores), judge)
            for number, text, by, origin, author, scores, judge in rows
        }

    def texts(self, parent: str) -> dict[int, str]:
        """{index: current text} of the units of ``parent`` that have one."""
        select = (
            sa.select(units.c.number, descriptions.c.text)
            .join(units, units.c.current == descriptions.c.id)
            .where(units.c.parent == parent, descriptions.c.text.is_not(None))
        )
        with self.database.reading() as connection:
            return dict(connection.execute(select).tuples().all())

    def judges(self, parent: str, indices: Iterable[int] | None = None) -> dict[int, str]:
        """{index: the judge who confirmed the current text} of some units of ``parent``, or of all;
        units without a text, and those whose text is a guess, are not in it."""
        select = (
            sa.select(units.c.number, _JUDGE)
            .join(units, units.c.current == descriptions.c.id)
            .where(units.c.parent == parent, descriptions.c.text.is_not(None), _JUDGE != "")
        )
        selects = [select]
        if indices is not None:
            chunks = _batches(sorted(set(indices)))
            selects = [select.where(units.c.number.in_(chunk)) for chunk in chunks]
        with self.database.reading() as connection:
            return {
                number: judge
                for each in selects
                for number, judge in connection.execute(each).tuples()
            }

    def history(self, unit: Unit) -> list[Entry]:
        """Every version but the current one, newest first."""
        with self.database.reading() as connection:
            return self._entries(connection, _is_unit(unit), current=False)

    def summary(self, parent: str) -> Summary:
        """How far the units of ``parent`` are described."""
        text, origin, describer = (descriptions.c[n] for n in ("text", "origin", "describer"))
        confirmed = sa.func.sum(sa.case((_JUDGE != "", 1), else_=0))
        with self.database.reading() as connection:
            rows = connection.execute(
                sa.select(text.is_not(None), origin, describer, sa.func.count(), confirmed)
                .join(units, units.c.current == descriptions.c.id)
                .where(units.c.parent == parent)
                .group_by(text.is_not(None), origin, describer)
            ).all()
        return Summary(
            described=sum(count for has_text, _, _, count, _ in rows if has_text),
            confirmed=sum(judged for has_text, _, _, _, judged in rows if has_text),
            abstained=sum(count for has_text, _, _, count, _ in rows if not has_text),
            by_people=sum(count for _, by, _, count, _ in rows if by == PERSON),
            describers=tuple(sorted({name for _, _, name, _, _ in rows if name})),
        )

    def search(self, query: str, parents: Sequence[str] | None = None) -> list[Hit]:
        """Units whose current text holds a word of ``query``, best first; see `full_text`.

        ``parents`` limits it to the units of these.
        """
        wanted = words(query)
        if not wanted:
            return []
        found = matches(self.database.dialect, wanted).subquery()
        select = sa.select(units.c.parent, units.c.number, found.c.rank).join(
            found, found.c.unit == units.c.id
        )
        if parents is not None:
            select = select.where(units.c.parent.in_(parents))
        select = select.order_by(found.c.rank.desc(), units.c.parent, units.c.number)
        with self.database.reading() as connection:
            rows = connection.execute(select).all()
        return [Hit(Unit(parent, number), float(rank)) for parent, number, rank in rows]

    def entries_by_id(self, connection: Connection, ids: Iterable[int]) -> dict[int, Entry]:
        """{id of its row: description} within a transaction of the caller."""
        found: dict[int, Entry] = {}
        for chunk in _batches(sorted(set(ids))):
            rows = connection.execute(_select().where(descriptions.c.id.in_(chunk))).mappings()
            found |= {row["id"]: _entry(row) for row in rows}
        return found

    @staticmethod
    def _entries(
        connection: Connection, *conditions: sa.ColumnElement[bool], current: bool
    ) -> list[Entry]:
        """Current or earlier versions, newest first."""
        held = units.c.current  # null where nothing holds any more
        wanted = descriptions.c.id == held if current else descriptions.c.id.is_distinct_from(held)
        select = _select().where(wanted, *conditions)
        rows = connection.execute(select.order_by(descriptions.c.id.desc())).mappings()
        return [_entry(row) for row in rows]

    @staticmethod
    def _units(connection: Connection, parent: str, indices: Sequence[int]) -> dict[int, Any]:
        """{index: (id, number, origin and identity of the current description)}; missing rows are
        made."""
        if len(set(indices)) != len(indices):
            raise InvalidInputError(f"two descriptions of one unit of {parent}", field="feature")

        def rows() -> dict[int, Any]:
            select = (
                sa.select(
                    units.c.id, units.c.number, descriptions.c.origin, descriptions.c.identity
                )
                .outerjoin(descriptions, descriptions.c.id == units.c.current)
                .where(units.c.parent == parent)
            )
            return {
                row.number: row
                for chunk in _batches(indices)
                for row in connection.execute(select.where(units.c.number.in_(chunk)))
            }

        found = rows()
        new = [{"parent": parent, "number": i} for i in indices if i not in found]
        if not new:
            return found
        connection.execute(units.insert(), new)
        return rows()

    def _check_etag(self, connection: Connection, unit: Unit, etag: str) -> None:
        current = self._entries(connection, _is_unit(unit), current=True)
        if [entry.etag for entry in current] != [etag]:
            raise ConflictError(
                f"the description of {unit.resource} was changed since you read it; read it again "
                "and decide anew",
                field="etag",
            )


def description_from_json(row: Mapping[str, Any]) -> Description:
    """The inverse of ``dataclasses.asdict`` after a way through JSON."""
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


def _check_texts(made: Sequence[Description]) -> None:
    for description in made:
        for said in (description.text or "", description.abstained):
            if len(said) > MOST_CHARACTERS or "\0" in said:
                raise InvalidInputError(
                    f"the text for unit {description.feature} is longer than {MOST_CHARACTERS} "
                    "characters or holds a null character",
                    field="text",
                )


def _batches(values: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(values), _BATCH):
        yield values[start : start + _BATCH]


def _holds(origin: Origin, current: Any, older_of: str | None) -> bool:
    """Whether a description by ``origin`` takes the place of the current one (see `_units`): what
    people said gives way to people only, and to what is older of its evidence nothing does."""
    if origin == PERSON:
        return True
    return current.origin != PERSON and (older_of is None or current.identity != older_of)


def _is_unit(unit: Unit) -> sa.ColumnElement[bool]:
    return sa.and_(units.c.parent == unit.parent, units.c.number == unit.index)


def _select() -> sa.Select[Any]:
    return sa.select(units.c.parent, units.c.number, *descriptions.c).join(
        units, descriptions.c.unit == units.c.id
    )


def _entry(row: RowMapping) -> Entry:
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


def _content(made: Description) -> dict[str, Any]:
    """What a row holds of a description beside its unit."""
    return {
        "text": made.text,
        "abstained": made.abstained,
        "describer": made.describer,
        "describer_version": made.describer_version,
        "scores": [dict(vars(score)) for score in made.scores],
        "evidence": list(made.evidence),
        "details": made.details,
        "candidates": [list(candidate) for candidate in made.candidates],
    }


def _digest(content: Mapping[str, Any], identity: str) -> str:
    """Hex SHA-256 of everything a describer said, and from what."""
    return sha256_json([identity, content])

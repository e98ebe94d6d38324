"""Reading the label store: current descriptions, their history, summaries and search."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import sqlalchemy as sa
from cachetools import LRUCache
from sqlalchemy.engine import Connection

from vision_sae.descriptions.protocol import JUDGED_BY, Score
from vision_sae.labels.database import Database, descriptions, units
from vision_sae.labels.entries import PERSON, Entry, Outline, Summary, TextHit, Unit
from vision_sae.labels.full_text import matches, words
from vision_sae.labels.rows import HELD, JUDGE, batches, entry_of, is_unit, select_versions

_KEPT = 4096
"""Entries in the cache. Entries are safe to cache: a version never changes and no id is reused."""


class LabelReader:
    """The reading half of `vision_sae.labels.store.LabelStore`."""

    def __init__(self, database: Database | str | Path) -> None:
        """Open the store in ``database``, or at a path or URL; a missing store is created."""
        self.database = database if isinstance(database, Database) else Database(database)
        self._kept: LRUCache[int, Entry] = LRUCache(_KEPT)
        self._keeping = threading.Lock()

    def close(self) -> None:
        """Close all connections."""
        self.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def parents(self) -> list[str]:
        """The dictionaries and sites that have units with a description, in order."""
        select = sa.select(units.c.parent).where(units.c.current.is_not(None)).distinct()
        with self.database.reading() as connection:
            return sorted(connection.execute(select).scalars())

    def current(self, unit: Unit) -> Entry | None:
        """The current description of a unit; None before any attempt."""
        return self.currents(unit.parent, [unit.index]).get(unit.index)

    def currents(self, parent: str, indices: Iterable[int] | None = None) -> dict[int, Entry]:
        """{index: current description} of the units ``indices`` of ``parent``, or of all."""
        with self.database.reading() as connection:
            if indices is None:
                entries = self._entries(connection, units.c.parent == parent, current=True)
                return {entry.unit.index: entry for entry in entries}
            held = {
                number: row
                for chunk in batches(sorted(set(indices)))
                for number, row in connection.execute(HELD, {"parent": parent, "numbers": chunk})
            }
            with self._keeping:
                known = {row: self._kept[row] for row in held.values() if row in self._kept}
            unread = self.entries_by_id(connection, set(held.values()) - known.keys())
        with self._keeping:
            self._kept.update(unread)
        known |= unread
        return {number: known[row] for number, row in held.items()}

    def outlines(self, parent: str) -> dict[int, Outline]:
        """{index: outline of the current description} of all units of ``parent``."""
        columns: list[sa.ColumnElement[Any]] = [
            descriptions.c[name] for name in Outline._fields if name != JUDGED_BY
        ]
        select = (
            sa.select(*[units.c.number, *columns, JUDGE])
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
        """{index: the judge who confirmed the current text} of the units ``indices`` of ``parent``,
        or of all. Units without a text and units whose text is a guess are left out."""
        select = (
            sa.select(units.c.number, JUDGE)
            .join(units, units.c.current == descriptions.c.id)
            .where(units.c.parent == parent, descriptions.c.text.is_not(None), JUDGE != "")
        )
        selects = [select]
        if indices is not None:
            chunks = batches(sorted(set(indices)))
            selects = [select.where(units.c.number.in_(chunk)) for chunk in chunks]
        with self.database.reading() as connection:
            return {
                number: judge
                for each in selects
                for number, judge in connection.execute(each).tuples()
            }

    def confirmed(self, candidates: Iterable[Unit]) -> set[Unit]:
        """The ``candidates`` whose current text a judge has confirmed."""
        indices: dict[str, list[int]] = {}
        for unit in candidates:
            indices.setdefault(unit.parent, []).append(unit.index)
        return {
            Unit(parent, index)
            for parent in indices
            for index in self.judges(parent, indices[parent])
        }

    def history(self, unit: Unit) -> list[Entry]:
        """Every version but the current one, newest first."""
        with self.database.reading() as connection:
            return self._entries(connection, is_unit(unit), current=False)

    def summary(self, parent: str) -> Summary:
        """Count the described units of ``parent``."""
        text, origin, describer = (descriptions.c[n] for n in ("text", "origin", "describer"))
        confirmed = sa.func.sum(sa.case((JUDGE != "", 1), else_=0))
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

    def search(self, query: str, parents: Sequence[str] | None = None) -> list[TextHit]:
        """Find units whose current text holds a word of ``query``, best first; see `full_text`.

        ``parents`` limits the search to units of these parents.
        """
        terms = words(query)
        if not terms:
            return []
        hits = matches(self.database.dialect, terms).subquery()
        select = sa.select(units.c.parent, units.c.number, hits.c.rank).join(
            hits, hits.c.unit == units.c.id
        )
        if parents is not None:
            select = select.where(units.c.parent.in_(parents))
        select = select.order_by(hits.c.rank.desc(), units.c.parent, units.c.number)
        with self.database.reading() as connection:
            rows = connection.execute(select).all()
        return [TextHit(Unit(parent, number), float(rank)) for parent, number, rank in rows]

    def entries_by_id(self, connection: Connection, ids: Iterable[int]) -> dict[int, Entry]:
        """{row id: entry}, read within a transaction of the caller."""
        entries: dict[int, Entry] = {}
        for chunk in batches(sorted(set(ids))):
            rows = connection.execute(
                select_versions().where(descriptions.c.id.in_(chunk))
            ).mappings()
            entries |= {row["id"]: entry_of(row) for row in rows}
        return entries

    @staticmethod
    def _entries(
        connection: Connection, *conditions: sa.ColumnElement[bool], current: bool
    ) -> list[Entry]:
        """Current or earlier versions, newest first."""
        held = units.c.current  # null for a unit without a current description
        wanted = descriptions.c.id == held if current else descriptions.c.id.is_distinct_from(held)
        select = select_versions().where(wanted, *conditions)
        rows = connection.execute(select.order_by(descriptions.c.id.desc())).mappings()
        return [entry_of(row) for row in rows]

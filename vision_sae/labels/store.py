"""The label store: every description a unit ever had, and which of them is current.

A unit is named by its resource, ``dictionaries/X/features/12`` or ``models/M/sites/S/units/5``.
A description is never changed: a new version is added, and the newest version is current. There is
one exception: only a person's text replaces a person's text, and a describer's newer text then goes
straight into the history.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from vision_sae.bundles.read import Bundle
from vision_sae.descriptions.protocol import JUDGED_BY, Description
from vision_sae.errors import ConflictError, InvalidInputError
from vision_sae.evidence.bundle import BundleEvidence
from vision_sae.evidence.protocol import Evidence
from vision_sae.files import sha256_json
from vision_sae.labels.database import about, descriptions, units
from vision_sae.labels.entries import PERSON, Entry, Origin, Unit, description_from_json
from vision_sae.labels.full_text import index_texts
from vision_sae.labels.reader import LabelReader
from vision_sae.labels.rows import batches, content_of, digest, is_unit

MOST_CHARACTERS = 500
"""Length of a text, or of a reason to abstain."""


class LabelStore(LabelReader):
    """Descriptions of units, with history and full-text search. Safe to share between threads."""

    def add(
        self,
        parent: str,
        new: Iterable[Description],
        *,
        identity: str,
        origin: Origin = "describer",
    ) -> None:
        """Store new descriptions of units of ``parent``, from a describer or a file of labels.

        ``identity`` is the identity of the evidence behind the descriptions. Either all of them
        are stored or none.
        """
        with self.database.writing() as connection:
            self.add_within(connection, parent, list(new), identity=identity, origin=origin)

    def add_within(
        self,
        connection: Connection,
        parent: str,
        new: Sequence[Description],
        *,
        identity: str,
        origin: Origin = "describer",
        author: str = "",
        older: bool = False,
    ) -> list[int]:
        """Do the work of `add` within a writing transaction of the caller; return the row ids.

        With ``older`` the descriptions are older than everything in the store: a unit that already
        has a description from the same evidence gets the new one into its history, and any other
        unit gets the new one as its current description.
        """
        _check_texts(new)
        known = self._units(connection, parent, [d.feature for d in new])
        now = self.database.clock()
        contents = map(content_of, new)
        rows = [
            content
            | {
                "unit": known[description.feature].id,
                "origin": origin,
                "author": author,
                "identity": identity,
                "digest": digest(content, identity),
                "etag": uuid.uuid4().hex,
                "created": now,
            }
            for description, content in zip(new, contents, strict=True)
        ]
        if not rows:
            return []
        insert = descriptions.insert().returning(descriptions.c.id, sort_by_parameter_order=True)
        ids = list(connection.execute(insert, rows).scalars())
        current = [
            (id_, row)
            for id_, row, description in zip(ids, rows, new, strict=True)
            if _replaces(origin, known[description.feature], identity if older else None)
        ]
        if current:
            change = units.update().where(units.c.id == sa.bindparam("unit"))
            connection.execute(
                change.values(current=sa.bindparam("row")),
                [{"row": id_, "unit": row["unit"]} for id_, row in current],
            )
            index_texts(connection, {row["unit"]: row["text"] for _, row in current})
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
        """Store a person's text, which counts as confirmed, or None with the reason to abstain.

        ``identity`` is the identity of the evidence that the person saw, if known. Raises
        `ConflictError` for an ``etag`` that is not the etag of the current version.
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
            (entry,) = self._entries(connection, is_unit(unit), current=True)
        return entry

    def import_bundle(self, bundle: Bundle) -> int:
        """Copy the descriptions of a bundle into the store; return how many were new.

        A description that an earlier import of the same evidence copied is skipped, because a newer
        text may have replaced it since. Importing the first bundle of a name keeps labels that the
        store already holds for it. If another dictionary had the bundle's name before, all labels
        of its features go to the history, including those that people wrote.
        """
        evidence = BundleEvidence(bundle)
        bundled = [description_from_json(row) for _, row in sorted(bundle.descriptions.items())]
        with self.database.writing() as connection:
            first = self._record_dictionary(connection, evidence, bundle.dictionary_sha256)
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
                for description in bundled
                if (description.feature, digest(content_of(description), evidence.identity))
                not in known
            ]
            identity = evidence.identity
            self.add_within(connection, evidence.name, new, identity=identity, older=first)
        return len(new)

    @staticmethod
    def _record_dictionary(connection: Connection, evidence: Evidence, dictionary: str) -> bool:
        """Record the hash of the ``dictionary`` whose units ``evidence`` describes.

        If another dictionary was recorded, descriptions from other evidence stop being current.
        Returns whether no dictionary was recorded before.
        """
        key = f"dictionary of {sha256_json(evidence.name)[:40]}"
        recorded = connection.scalar(sa.select(about.c.value).where(about.c.key == key))
        if recorded == dictionary:
            return False
        connection.execute(about.delete().where(about.c.key == key))
        connection.execute(about.insert(), {"key": key, "value": dictionary})
        if recorded is None:
            return True
        stale = sa.select(units.c.id).join(descriptions, units.c.current == descriptions.c.id)
        stale = stale.where(units.c.parent == evidence.name)
        stale = stale.where(descriptions.c.identity != evidence.identity)
        ids = list(connection.execute(stale).scalars())
        for batch in batches(ids):
            connection.execute(units.update().where(units.c.id.in_(batch)).values(current=None))
            index_texts(connection, dict.fromkeys(batch))
        return False

    @staticmethod
    def _units(connection: Connection, parent: str, indices: Sequence[int]) -> dict[int, Any]:
        """{index: (id, number, origin and identity of the current description)}; missing rows are
        inserted."""
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
                for chunk in batches(indices)
                for row in connection.execute(select.where(units.c.number.in_(chunk)))
            }

        existing = rows()
        new = [{"parent": parent, "number": i} for i in indices if i not in existing]
        if not new:
            return existing
        connection.execute(units.insert(), new)
        return rows()

    def _check_etag(self, connection: Connection, unit: Unit, etag: str) -> None:
        current = self._entries(connection, is_unit(unit), current=True)
        if [entry.etag for entry in current] != [etag]:
            raise ConflictError(
                f"the description of {unit.resource} was changed since you read it; read it again "
                "and decide anew",
                field="etag",
            )


def _check_texts(new: Sequence[Description]) -> None:
    for description in new:
        for text in (description.text or "", description.abstained):
            if len(text) > MOST_CHARACTERS or "\0" in text:
                raise InvalidInputError(
                    f"the text for unit {description.feature} is longer than {MOST_CHARACTERS} "
                    "characters or holds a null character",
                    field="text",
                )


def _replaces(origin: Origin, current: Any, older_of: str | None) -> bool:
    """Whether a new description by ``origin`` replaces the ``current`` one (a row of `_units`).

    A person's description is replaced only by a person's. A new description that is older than the
    store (``older_of`` is its evidence) never replaces one from the same evidence.
    """
    if origin == PERSON:
        return True
    return current.origin != PERSON and (older_of is None or current.identity != older_of)

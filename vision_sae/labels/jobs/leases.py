"""The workers' side of the queue of label jobs: leases of units and the results of units.

A unit is finished in the transaction that stores its description, and only by the worker that
holds the unit's lease at that moment. Therefore each unit is labelled exactly once, whichever
process is killed at whatever time. The lease of a dead worker expires. A worker that was merely
slow finds that its lease is gone, and its results are dropped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from vision_sae.descriptions.protocol import Description
from vision_sae.errors import InvalidInputError, NotFoundError
from vision_sae.labels.database import job_units, jobs, leases
from vision_sae.labels.jobs.job import OPEN, Chunk, Failure, State
from vision_sae.labels.jobs.rows import done_units, most_units, target_of
from vision_sae.labels.store import LabelStore

Outcome = Description | Failure
"""The result of labelling one unit."""


class JobLeases:
    """The workers' methods of `vision_sae.labels.jobs.queue.LabelJobs`."""

    def __init__(self, store: LabelStore) -> None:
        self.store = store
        self._database = store.database

    def claim(self, name: str, worker: str, *, count: int, seconds: float) -> Chunk | None:
        """Lease at most ``count`` units of one parent for ``seconds``.

        Returns None when there is nothing to claim: the job has ended, or other workers hold the
        remaining units.
        """
        with self._database.writing() as connection:
            row, now = self._row(connection, name), self._database.clock()
            if row["state"] not in OPEN:
                return None
            self._release_expired(connection, row["id"], now)
            if self._out_of_budget(connection, row):
                return None
            leased = connection.execute(
                sa.select(sa.func.count())
                .where(job_units.c.job == row["id"])
                .where(job_units.c.sequence.is_(None), job_units.c.lease.is_not(None))
            ).scalar_one()
            count = min(count, most_units(row) - done_units(row) - leased)
            waiting = connection.execute(
                sa.select(job_units.c.position, job_units.c.parent, job_units.c.number)
                .where(job_units.c.job == row["id"])
                .where(job_units.c.sequence.is_(None), job_units.c.lease.is_(None))
                .order_by(job_units.c.position)
                .limit(max(count, 0))
            ).all()
            chosen = [unit for unit in waiting if unit.parent == waiting[0].parent]
            if not chosen:
                return None
            change = jobs.update().where(jobs.c.id == row["id"], jobs.c.state == "queued")
            connection.execute(change.values(state="running", started=now))
            lease = connection.execute(
                leases.insert().values(
                    job=row["id"], worker=worker, expires=now + seconds, accounted=now
                )
            ).inserted_primary_key
            assert lease is not None
            positions = [unit.position for unit in chosen]
            connection.execute(
                job_units.update()
                .where(job_units.c.job == row["id"], job_units.c.position.in_(positions))
                .values(lease=lease.id)
            )
        return Chunk(int(lease.id), chosen[0].parent, tuple(unit.number for unit in chosen))

    def renew(self, name: str, lease: int, *, seconds: float) -> bool:
        """Keep a lease for ``seconds`` from now; False when the lease is lost or the job has
        ended."""
        with self._database.writing() as connection:
            return self._keep(connection, self._row(connection, name), lease, seconds)

    def finish(
        self, name: str, chunk: Chunk, outcomes: Mapping[int, Outcome], *, seconds: float
    ) -> bool:
        """Store the outcomes of some units of a chunk, by index, and keep the other units leased.

        Finishing the last units ends the lease. Returns False when the lease is lost, so that
        nothing was stored, and when the job has ended.
        """
        with self._database.writing() as connection:
            row, now = self._row(connection, name), self._database.clock()
            if not self._keep(connection, row, chunk.lease, seconds):
                return False
            described = [o for o in outcomes.values() if isinstance(o, Description)]
            identity = target_of(row).identities[chunk.parent]
            ids = self.store.add_within(connection, chunk.parent, described, identity=identity)
            stored = dict(zip((d.feature for d in described), ids, strict=True))
            finished = [
                {
                    "index": index,
                    "sequence": number,
                    "description": stored.get(index),
                    "error": outcome._asdict() if isinstance(outcome, Failure) else None,
                }
                for number, (index, outcome) in enumerate(outcomes.items(), done_units(row) + 1)
            ]
            self._mark(connection, row["id"], chunk, finished, now)
            counts = Counter(map(_kind, outcomes.values()))
            change = jobs.update().where(jobs.c.id == row["id"])
            if counts:
                more = {kind: jobs.c[kind] + count for kind, count in counts.items()}
                connection.execute(change.values(more))
            unfinished = sa.select(sa.exists().where(job_units.c.lease == chunk.lease))
            if not connection.execute(unfinished).scalar_one():
                self._drop_leases(connection, leases.c.id == chunk.lease)
            self._end_if_done(connection, name)
            return self._row(connection, name)["state"] in OPEN

    def release(self, name: str, lease: int) -> None:
        """Give back the unfinished units of a chunk."""
        with self._database.writing() as connection:
            self._keep(connection, self._row(connection, name), lease, 0.0)
            self._drop_leases(connection, leases.c.id == lease)

    def fail(self, name: str, failure: Failure) -> None:
        """End a job that cannot go on."""
        with self._database.writing() as connection:
            row = self._row(connection, name)
            if row["state"] in OPEN:
                self._end(connection, row["id"], "failed", failure)

    # Within a transaction

    @staticmethod
    def _row(connection: Connection, name: str) -> RowMapping:
        rows = connection.execute(sa.select(jobs).where(jobs.c.name == name)).mappings()
        row = rows.one_or_none()
        if row is None:
            raise NotFoundError(f"there is no label job {name}", field="name")
        return row

    def _keep(self, connection: Connection, row: RowMapping, lease: int, seconds: float) -> bool:
        """Add the time since the last call to the job's used time, and renew the lease."""
        held = connection.execute(sa.select(leases).where(leases.c.id == lease)).mappings()
        row_of_lease, now = held.one_or_none(), self._database.clock()
        if row_of_lease is None:
            return False
        used = max(0.0, now - row_of_lease["accounted"])
        connection.execute(
            jobs.update().where(jobs.c.id == row["id"]).values(used=jobs.c.used + used)
        )
        connection.execute(
            leases.update().where(leases.c.id == lease).values(expires=now + seconds, accounted=now)
        )
        return True

    @staticmethod
    def _mark(
        connection: Connection,
        job: int,
        chunk: Chunk,
        finished: Sequence[Mapping[str, Any]],
        now: float,
    ) -> None:
        """Mark units as finished; all must be under the lease of the chunk."""
        held = connection.execute(
            sa.select(job_units.c.number).where(job_units.c.lease == chunk.lease)
        ).scalars()
        if outside := {row["index"] for row in finished} - set(held):
            raise InvalidInputError(
                f"units {sorted(outside)} do not belong to the leased chunk", field="units"
            )
        if finished:
            connection.execute(
                job_units.update()
                .where(job_units.c.job == job, job_units.c.lease == chunk.lease)
                .where(job_units.c.number == sa.bindparam("index"))
                .values(
                    lease=None,
                    finished=now,
                    **{name: sa.bindparam(name) for name in ("sequence", "description", "error")},
                ),
                finished,
            )

    def _release_expired(self, connection: Connection, job: int, now: float) -> None:
        self._drop_leases(connection, sa.and_(leases.c.job == job, leases.c.expires <= now))

    @staticmethod
    def _drop_leases(connection: Connection, which: sa.ColumnElement[bool]) -> None:
        gone = sa.select(leases.c.id).where(which).scalar_subquery()
        connection.execute(job_units.update().where(job_units.c.lease.in_(gone)).values(lease=None))
        connection.execute(leases.delete().where(which))

    def _out_of_budget(self, connection: Connection, row: RowMapping) -> bool:
        """End the job as exhausted if its budget is used up; return whether it was."""
        no_time = row["max_seconds"] is not None and row["used"] >= row["max_seconds"]
        if no_time or most_units(row) <= done_units(row) < row["total"]:
            self._end(connection, row["id"], "exhausted")
            return True
        return False

    def _end_if_done(self, connection: Connection, name: str) -> None:
        row = self._row(connection, name)
        if done_units(row) == row["total"]:
            self._end(connection, row["id"], "succeeded")
        else:
            self._out_of_budget(connection, row)

    def _end(
        self, connection: Connection, job: int, state: State, failure: Failure | None = None
    ) -> None:
        connection.execute(
            jobs.update()
            .where(jobs.c.id == job)
            .values(
                state=state,
                ended=self._database.clock(),
                error=failure._asdict() if failure else {},
            )
        )
        self._drop_leases(connection, leases.c.job == job)


def _kind(outcome: Outcome) -> str:
    if isinstance(outcome, Failure):
        return "failed"
    return "abstained" if outcome.text is None else "labelled"

"""The queue of label jobs: who works on which units, and what is finished.

A unit is finished in the transaction that stores its description, and only by the worker that
holds its lease at that moment. So each unit is labelled exactly once, whatever is killed when: a
worker that dies leaves a lease that expires; one that was only slow finds its lease gone and its
work is dropped.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from vision_sae.descriptions.database import job_units, jobs, leases
from vision_sae.descriptions.jobs.job import (
    OPEN,
    Budget,
    Chunk,
    Failure,
    Finished,
    Job,
    Progress,
    State,
    Target,
)
from vision_sae.descriptions.protocol import Description
from vision_sae.descriptions.store import LabelStore, Unit
from vision_sae.errors import AlreadyExistsError, InvalidInputError, NotFoundError

_RATE_SECONDS = 60.0
Outcome = Description | Failure
"""What labelling a unit gave."""


class LabelJobs:
    """The jobs of one label store. Safe to share between threads."""

    def __init__(self, store: LabelStore) -> None:
        self.store = store
        self._database = store.database

    # For those who want units labelled

    def create(
        self,
        units: Sequence[Unit],
        target: Target,
        *,
        budget: Budget | None = None,
        name: str = "",
        creator: str = "",
        request_id: str = "",
    ) -> Job:
        """Put a job in the queue; its units will be worked on in this order.

        A ``request_id`` that was used before gives the job it made then. Raises
        `AlreadyExistsError` when the name is taken, and `InvalidInputError` when the job that the
        id has made is another.
        """
        if len(set(units)) != len(units):
            raise InvalidInputError("a unit is named twice", field="units")
        if unknown := {unit.parent for unit in units} - target.identities.keys():
            raise InvalidInputError(f"no evidence for {', '.join(sorted(unknown))}", field="units")
        limits, now = budget or Budget(), self._database.clock()
        with self._database.writing() as connection:
            if request_id:
                made = connection.execute(
                    sa.select(jobs.c.name).where(jobs.c.request_id == request_id)
                ).scalar_one_or_none()
                if made is not None:
                    return _same(_job(self._row(connection, made)), target, name)
            name = name or f"job-{uuid.uuid4().hex}"
            taken = sa.select(sa.exists().where(jobs.c.name == name))
            if connection.execute(taken).scalar_one():
                raise AlreadyExistsError(
                    f"there is a label job {name}; choose another name", field="label_job_id"
                )
            settings = asdict(target)
            row = {
                "name": name,
                "request_id": request_id or None,
                "describer": settings.pop("describer"),
                "config": settings.pop("config"),
                "target": settings,
                "creator": creator,
                "max_units": limits.units,
                "max_seconds": limits.seconds,
                "state": "queued" if units else "succeeded",
                "error": {},
                "total": len(units),
                "labelled": 0,
                "abstained": 0,
                "failed": 0,
                "used": 0.0,
                "created": now,
                "ended": None if units else now,
            }
            stored = connection.execute(jobs.insert().values(**row)).inserted_primary_key
            assert stored is not None
            rows = [
                {"job": stored.id, "position": i, "parent": unit.parent, "number": unit.index}
                for i, unit in enumerate(units)
            ]
            if rows:
                connection.execute(job_units.insert(), rows)
            return _job(self._row(connection, name))

    def get(self, name: str) -> Job:
        """A job; raises `NotFoundError`."""
        with self._database.reading() as connection:
            return _job(self._row(connection, name))

    def all(self) -> list[Job]:
        """Every job, newest first."""
        with self._database.reading() as connection:
            rows = connection.execute(sa.select(jobs).order_by(jobs.c.id.desc())).mappings()
            return [_job(row) for row in rows]

    def cancel(self, name: str) -> Job:
        """Stop a job; what it stored stays. One that has ended stays as it is."""
        with self._database.writing() as connection:
            row = self._row(connection, name)
            if row["state"] in OPEN:
                self._end(connection, row["id"], "cancelled")
            return _job(self._row(connection, name))

    def allow(self, name: str, budget: Budget) -> Job:
        """Give an open job another budget, of which it has used what it has used so far."""
        with self._database.writing() as connection:
            row = self._row(connection, name)
            if row["state"] in OPEN:
                change = jobs.update().where(jobs.c.id == row["id"])
                connection.execute(
                    change.values(max_units=budget.units, max_seconds=budget.seconds)
                )
            return _job(self._row(connection, name))

    def progress(self, name: str) -> Progress:
        """How fast a job goes."""
        with self._database.reading() as connection:
            row = self._row(connection, name)
            mine = job_units.c.job == row["id"]
            last = connection.execute(
                sa.select(sa.func.max(job_units.c.finished)).where(mine)
            ).scalar_one()
            workers = connection.execute(
                sa.select(sa.func.count(sa.distinct(leases.c.worker)))
                .where(leases.c.job == row["id"])
                .where(leases.c.expires > self._database.clock())
            ).scalar_one()
            if last is None or last <= row["started"]:
                return Progress(0.0, None, workers)
            first = max(row["started"], last - _RATE_SECONDS)
            count = connection.execute(
                sa.select(sa.func.count()).where(mine, job_units.c.finished > first)
            ).scalar_one()
        rate = count / (last - first)
        left = _limit(row) - _done(row)
        return Progress(rate, left / rate if rate and row["state"] in OPEN else None, workers)

    def finished(self, name: str, *, after: int = 0, limit: int = 1000) -> list[Finished]:
        """Units in the order they were finished, from the one behind number ``after`` on."""
        with self._database.reading() as connection:
            job = self._row(connection, name)["id"]
            rows = (
                connection.execute(
                    sa.select(job_units)
                    .where(job_units.c.job == job, job_units.c.sequence > after)
                    .order_by(job_units.c.sequence)
                    .limit(limit)
                )
                .mappings()
                .all()
            )
            ids = [row["description"] for row in rows if row["description"] is not None]
            entries = self.store.entries_by_id(connection, ids)
        return [
            Finished(
                row["sequence"],
                Unit(row["parent"], row["number"]),
                entries.get(row["description"]),
                Failure(**row["error"]) if row["error"] else None,
            )
            for row in rows
        ]

    # For workers

    def claim(self, name: str, worker: str, *, count: int, seconds: float) -> Chunk | None:
        """Lease at most ``count`` units of one parent for ``seconds``.

        None when there is nothing to claim: the job has ended, or other workers hold what is left.
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
            count = min(count, _limit(row) - _done(row) - leased)
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
        """Keep a lease for ``seconds`` from now; False when it is lost or the job has ended."""
        with self._database.writing() as connection:
            return self._keep(connection, self._row(connection, name), lease, seconds)

    def finish(
        self, name: str, chunk: Chunk, outcomes: Mapping[int, Outcome], *, seconds: float
    ) -> bool:
        """Store what labelling gave for some units of a chunk, by index, and keep the rest leased.

        The last units end the lease. False when nothing was stored because the lease is lost, or
        when the job has ended.
        """
        with self._database.writing() as connection:
            row, now = self._row(connection, name), self._database.clock()
            if not self._keep(connection, row, chunk.lease, seconds):
                return False
            made = [o for o in outcomes.values() if isinstance(o, Description)]
            identity = _target(row).identities[chunk.parent]
            ids = self.store.add_within(connection, chunk.parent, made, identity=identity)
            stored = dict(zip((d.feature for d in made), ids, strict=True))
            done = [
                {
                    "index": index,
                    "sequence": number,
                    "description": stored.get(index),
                    "error": outcome._asdict() if isinstance(outcome, Failure) else None,
                }
                for number, (index, outcome) in enumerate(outcomes.items(), _done(row) + 1)
            ]
            self._mark(connection, row["id"], chunk, done, now)
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
        """Give back what is not finished of a chunk."""
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
        found = connection.execute(sa.select(jobs).where(jobs.c.name == name)).mappings()
        row = found.one_or_none()
        if row is None:
            raise NotFoundError(f"there is no label job {name}", field="name")
        return row

    def _keep(self, connection: Connection, row: RowMapping, lease: int, seconds: float) -> bool:
        """Account for the time since the last time, and renew."""
        held = connection.execute(sa.select(leases).where(leases.c.id == lease)).mappings()
        found, now = held.one_or_none(), self._database.clock()
        if found is None:
            return False
        used = max(0.0, now - found["accounted"])
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
        done: Sequence[Mapping[str, Any]],
        now: float,
    ) -> None:
        """Mark units as finished; all must be under the lease of the chunk."""
        held = connection.execute(
            sa.select(job_units.c.number).where(job_units.c.lease == chunk.lease)
        ).scalars()
        if outside := {row["index"] for row in done} - set(held):
            raise InvalidInputError(
                f"units {sorted(outside)} are not of the chunk that was leased", field="units"
            )
        if done:
            connection.execute(
                job_units.update()
                .where(job_units.c.job == job, job_units.c.lease == chunk.lease)
                .where(job_units.c.number == sa.bindparam("index"))
                .values(
                    lease=None,
                    finished=now,
                    **{name: sa.bindparam(name) for name in ("sequence", "description", "error")},
                ),
                done,
            )

    def _release_expired(self, connection: Connection, job: int, now: float) -> None:
        self._drop_leases(connection, sa.and_(leases.c.job == job, leases.c.expires <= now))

    @staticmethod
    def _drop_leases(connection: Connection, which: sa.ColumnElement[bool]) -> None:
        gone = sa.select(leases.c.id).where(which).scalar_subquery()
        connection.execute(job_units.update().where(job_units.c.lease.in_(gone)).values(lease=None))
        connection.execute(leases.delete().where(which))

    def _out_of_budget(self, connection: Connection, row: RowMapping) -> bool:
        """End the job as exhausted when it is."""
        no_time = row["max_seconds"] is not None and row["used"] >= row["max_seconds"]
        if no_time or _limit(row) <= _done(row) < row["total"]:
            self._end(connection, row["id"], "exhausted")
            return True
        return False

    def _end_if_done(self, connection: Connection, name: str) -> None:
        row = self._row(connection, name)
        if _done(row) == row["total"]:
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


def _done(row: RowMapping) -> int:
    return int(row["labelled"] + row["abstained"] + row["failed"])


def _limit(row: RowMapping) -> int:
    """Units that may be finished in all."""
    most = row["total"] if row["max_units"] is None else row["max_units"]
    return int(min(row["total"], most))


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _target(row: RowMapping) -> Target:
    return Target(describer=row["describer"], config=row["config"], **row["target"])


def _same(made: Job, target: Target, name: str) -> Job:
    """The job that a request id has made; refuses the id with a request for another one."""
    before = made.target
    if (before.describer, before.asked) != (target.describer, target.asked) or (
        name not in ("", made.name)
    ):
        raise InvalidInputError(
            "this request id came with another request before; make a new one", field="request_id"
        )
    return made


def _job(row: RowMapping) -> Job:
    return Job(
        name=row["name"],
        target=_target(row),
        budget=Budget(row["max_units"], row["max_seconds"]),
        creator=row["creator"],
        state=row["state"],
        error=Failure(**row["error"]) if row["error"] else None,
        total=row["total"],
        labelled=row["labelled"],
        abstained=row["abstained"],
        failed=row["failed"],
        used=row["used"],
        created=datetime.fromtimestamp(row["created"], UTC),
        started=_time(row["started"]),
        ended=_time(row["ended"]),
    )

"""The queue of label jobs: jobs are created, watched, given budgets and cancelled.

Workers lease units and finish them in `vision_sae.labels.jobs.leases`.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import asdict

import sqlalchemy as sa

from vision_sae.errors import AlreadyExistsError, InvalidInputError
from vision_sae.labels.database import job_units, jobs, leases
from vision_sae.labels.entries import Unit
from vision_sae.labels.jobs.job import OPEN, Budget, Failure, Finished, Job, JobTarget, Progress
from vision_sae.labels.jobs.leases import JobLeases
from vision_sae.labels.jobs.rows import done_units, job_of, most_units

_RATE_SECONDS = 60.0
"""The rate of a job is measured over the last so many seconds of work."""


class LabelJobs(JobLeases):
    """The jobs of one label store. Safe to share between threads."""

    def create(
        self,
        units: Sequence[Unit],
        target: JobTarget,
        *,
        budget: Budget | None = None,
        name: str = "",
        creator: str = "",
        request_id: str = "",
    ) -> Job:
        """Put a job in the queue; workers take its units in this order.

        A ``request_id`` that was used before returns the job of the earlier request. Raises
        `AlreadyExistsError` when the name is taken, and `InvalidInputError` when the earlier
        request asked for another job.
        """
        if len(set(units)) != len(units):
            raise InvalidInputError("a unit is named twice", field="units")
        if unknown := {unit.parent for unit in units} - target.identities.keys():
            raise InvalidInputError(
                f"there is no evidence for {', '.join(sorted(unknown))}", field="units"
            )
        limits, now = budget or Budget(), self._database.clock()
        with self._database.writing() as connection:
            if request_id:
                earlier = connection.execute(
                    sa.select(jobs.c.name).where(jobs.c.request_id == request_id)
                ).scalar_one_or_none()
                if earlier is not None:
                    return _same(job_of(self._row(connection, earlier)), target, name)
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
            return job_of(self._row(connection, name))

    def get(self, name: str) -> Job:
        """A job; raises `NotFoundError`."""
        with self._database.reading() as connection:
            return job_of(self._row(connection, name))

    def all(self) -> list[Job]:
        """Every job, newest first."""
        with self._database.reading() as connection:
            rows = connection.execute(sa.select(jobs).order_by(jobs.c.id.desc())).mappings()
            return [job_of(row) for row in rows]

    def cancel(self, name: str) -> Job:
        """Stop a job and keep the labels it stored. A job that has ended does not change."""
        with self._database.writing() as connection:
            row = self._row(connection, name)
            if row["state"] in OPEN:
                self._end(connection, row["id"], "cancelled")
            return job_of(self._row(connection, name))

    def allow(self, name: str, budget: Budget) -> Job:
        """Replace the budget of an open job; units and time used so far count toward it."""
        with self._database.writing() as connection:
            row = self._row(connection, name)
            if row["state"] in OPEN:
                change = jobs.update().where(jobs.c.id == row["id"])
                connection.execute(
                    change.values(max_units=budget.units, max_seconds=budget.seconds)
                )
            return job_of(self._row(connection, name))

    def progress(self, name: str) -> Progress:
        """The speed of a job."""
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
        left = most_units(row) - done_units(row)
        return Progress(rate, left / rate if rate and row["state"] in OPEN else None, workers)

    def finished(self, name: str, *, after: int = 0, limit: int = 1000) -> list[Finished]:
        """At most ``limit`` finished units, in order of finishing, with numbers above ``after``."""
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


def _same(earlier: Job, target: JobTarget, name: str) -> Job:
    """The job of an earlier request with the same id; refuses a request for another job."""
    old = earlier.target
    if (old.describer, old.asked) != (target.describer, target.asked) or (
        name not in ("", earlier.name)
    ):
        raise InvalidInputError(
            "this request id belongs to an earlier, different request; choose a new id",
            field="request_id",
        )
    return earlier

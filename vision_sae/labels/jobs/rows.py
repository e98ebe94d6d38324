"""Conversion of label jobs from database rows."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy.engine import RowMapping

from vision_sae.labels.jobs.job import Budget, Failure, Job, JobTarget


def done_units(row: RowMapping) -> int:
    """Units of a job that are finished: labelled, abstained or failed."""
    return int(row["labelled"] + row["abstained"] + row["failed"])


def most_units(row: RowMapping) -> int:
    """Units that the job may finish in all, by its size and its budget."""
    most = row["total"] if row["max_units"] is None else row["max_units"]
    return int(min(row["total"], most))


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def target_of(row: RowMapping) -> JobTarget:
    """The target of a job's row."""
    return JobTarget(describer=row["describer"], config=row["config"], **row["target"])


def job_of(row: RowMapping) -> Job:
    """The job of a row."""
    return Job(
        name=row["name"],
        target=target_of(row),
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

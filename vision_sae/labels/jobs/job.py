"""A label job, and the records that its workers and observers see."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, NamedTuple

from vision_sae.errors import VisionSaeError
from vision_sae.labels.entries import Entry, Unit

State = Literal["queued", "running", "succeeded", "failed", "cancelled", "exhausted"]
OPEN: tuple[State, ...] = ("queued", "running")
"""States of a job that has not ended."""


class Failure(NamedTuple):
    """Why a unit, or a whole job, failed."""

    reason: str
    """Stable name from the catalogue of errors."""
    message: str
    field: str = ""

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """The failure of an error. An error outside the catalogue shows only its type and
        message."""
        if isinstance(error, VisionSaeError):
            return cls(error.reason, str(error), error.field)
        return cls("INTERNAL", f"{type(error).__name__}: {error}")


@dataclass(frozen=True)
class Budget:
    """Limits of a job; None means no limit."""

    units: int | None = None
    """Units to finish."""
    seconds: float | None = None
    """Computing time, summed over all workers."""


@dataclass(frozen=True)
class JobTarget:
    """The units to label and how to label them."""

    describer: str
    identities: dict[str, str]
    """{parent of units: identity of the evidence that the labels rest on}"""
    asked: dict[str, Any] = field(default_factory=dict)
    """The client's request to the server, as JSON: a server works on such jobs. Empty for jobs of
    the command line, which brings its own describer."""
    config: dict[str, Any] = field(default_factory=dict)
    """Settings of the describer, as JSON."""


@dataclass(frozen=True)
class Job:
    """The state of a job at one moment."""

    name: str
    target: JobTarget
    budget: Budget
    creator: str
    state: State
    error: Failure | None
    """Why the job failed; None if it did not."""
    total: int
    labelled: int
    abstained: int
    failed: int
    used: float
    """Seconds of computing, summed over all workers."""
    created: datetime
    started: datetime | None
    ended: datetime | None

    @property
    def done(self) -> int:
        """Units finished: labelled, abstained or failed."""
        return self.labelled + self.abstained + self.failed

    @property
    def open(self) -> bool:
        """Whether the job has not ended."""
        return self.state in OPEN


class Progress(NamedTuple):
    """The speed of a job."""

    rate: float
    """Units finished per second over the last minute of work; 0 when unknown."""
    remaining: float | None
    """Seconds to the end at this rate; None when unknown."""
    workers: int
    """Workers that hold a lease at the moment."""


class Chunk(NamedTuple):
    """Units that one worker has leased."""

    lease: int
    """The fencing token. No token is issued twice, and a token is void once another worker has
    taken the units over."""
    parent: str
    indices: tuple[int, ...]


class Finished(NamedTuple):
    """A finished unit of a job."""

    sequence: int
    """1 for the first unit of the job that was finished, 2 for the next, without gaps."""
    unit: Unit
    entry: Entry | None
    """The stored description; None for a failed unit."""
    failure: Failure | None

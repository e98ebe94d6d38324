"""What a label job is, and what its workers and watchers get to see of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, NamedTuple

from vision_sae.descriptions.store import Entry, Unit
from vision_sae.errors import VisionSaeError

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
        """An error raised on purpose as it is; of another only that it happened, and its type."""
        if isinstance(error, VisionSaeError):
            return cls(error.reason, str(error), error.field)
        return cls("INTERNAL", f"{type(error).__name__}: {error}")


@dataclass(frozen=True)
class Budget:
    """What a job may use; None means no limit."""

    units: int | None = None
    """Units to finish."""
    seconds: float | None = None
    """Computing time, over all workers."""


@dataclass(frozen=True)
class Target:
    """What to label, and how."""

    describer: str
    identities: dict[str, str]
    """{parent of units: identity of the evidence to label them from}"""
    asked: dict[str, Any] = field(default_factory=dict)
    """The request of a server's client that the units came from, as JSON: a server works on such
    jobs. Empty for jobs of the command line, which bring their own describer."""
    config: dict[str, Any] = field(default_factory=dict)
    """Settings of the describer, as JSON."""


@dataclass(frozen=True)
class Job:
    """A job as it is at one moment."""

    name: str
    target: Target
    budget: Budget
    creator: str
    state: State
    error: Failure | None
    """Why it failed."""
    total: int
    labelled: int
    abstained: int
    failed: int
    used: float
    """Seconds of computing, over all workers."""
    created: datetime
    started: datetime | None
    ended: datetime | None

    @property
    def done(self) -> int:
        """Units finished: labelled, abstained or failed."""
        return self.labelled + self.abstained + self.failed

    @property
    def open(self) -> bool:
        """Whether it has not ended."""
        return self.state in OPEN


class Progress(NamedTuple):
    """How fast a job goes."""

    rate: float
    """Units finished per second, over the last minute of work; 0 when not known."""
    remaining: float | None
    """Seconds to the end at this rate; None when not known."""
    workers: int
    """Workers that hold a lease at the moment."""


class Chunk(NamedTuple):
    """Units that one worker has leased."""

    lease: int
    """The fencing token: never given twice, and worth nothing once the lease was taken over."""
    parent: str
    indices: tuple[int, ...]


class Finished(NamedTuple):
    """A unit that a job is done with."""

    sequence: int
    """1 for the first unit of the job that was finished, 2 for the next, without gaps."""
    unit: Unit
    entry: Entry | None
    """What was stored; None when it failed."""
    failure: Failure | None

"""A worker leases units of a job, has them labelled, and hands in the results."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from vision_sae.descriptions.protocol import Description
from vision_sae.devices import is_lost
from vision_sae.errors import RemoteServerAwayError, VisionSaeError
from vision_sae.labels.jobs.job import Chunk, Failure, Job
from vision_sae.labels.jobs.leases import Outcome
from vision_sae.labels.jobs.queue import LabelJobs

Label = Callable[[str, Sequence[int]], Iterable[Description]]
"""(parent, indices) -> descriptions of these units, in any order, as soon as each is ready."""

_LOG = logging.getLogger("vision_sae")
_RENEWALS = 3
"""How often a lease is renewed within its life."""


@dataclass(frozen=True)
class Pace:
    """Sizes and times of a worker's steps."""

    chunk: int = 32
    """Units leased at a time."""
    lease_seconds: float = 60.0
    """How long the lease of a dead worker lasts."""
    hand_in_seconds: float = 1.0
    """Shortest time between two stores of finished units."""
    wait_seconds: float = 1.0
    """Time between looks for work while other workers hold the remaining units."""


def run_worker(
    jobs: LabelJobs,
    name: str,
    label: Label,
    *,
    pace: Pace | None = None,
    stop: threading.Event | None = None,
) -> Job:
    """Work on a job until it has ended or ``stop`` is set; return the job's last state.

    Any number of workers, in any number of processes, may do this at once. If labelling a unit
    raises, the unit is tried once more alone and then counts as failed; the other units go on.

    Raises `RemoteServerAwayError` when the describer's remote server does not answer, and the error
    of a GPU that is lost (`vision_sae.devices.is_lost`); the unfinished units wait for the next
    worker.
    """
    stop, chosen = stop or threading.Event(), pace or Pace()
    worker = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
    while not stop.is_set():
        chunk = jobs.claim(name, worker, count=chosen.chunk, seconds=chosen.lease_seconds)
        if chunk is not None:
            _work(jobs, name, chunk, label, chosen, stop)
        elif jobs.get(name).open:
            stop.wait(chosen.wait_seconds)
        else:
            break
    return jobs.get(name)


def _work(
    jobs: LabelJobs, name: str, chunk: Chunk, label: Label, pace: Pace, stop: threading.Event
) -> None:
    """Label a chunk and hand it in, piece by piece."""
    ready: dict[int, Outcome] = {}
    left, handed_in = len(chunk.indices), time.monotonic()
    end: Exception | None = None
    with _renewing(jobs, name, chunk, pace) as lost:
        try:
            for index, outcome in _outcomes(label, chunk):
                ready[index] = outcome
                left -= 1
                if stop.is_set() or lost.is_set():
                    break
                if time.monotonic() - handed_in >= pace.hand_in_seconds and left:
                    if not jobs.finish(name, chunk, ready, seconds=pace.lease_seconds):
                        return
                    ready, handed_in = {}, time.monotonic()
        except Exception as error:
            if not _ends_worker(error):
                raise
            end = error
    held = not lost.is_set() and jobs.finish(name, chunk, ready, seconds=pace.lease_seconds)
    if held and left:
        jobs.release(name, chunk.lease)
    if end is not None:
        raise end


@contextmanager
def _renewing(jobs: LabelJobs, name: str, chunk: Chunk, pace: Pace) -> Iterator[threading.Event]:
    """Renew the lease in the background; the event is set when the lease is lost."""
    over, lost = threading.Event(), threading.Event()

    def renew() -> None:
        while not over.wait(pace.lease_seconds / _RENEWALS):
            if not jobs.renew(name, chunk.lease, seconds=pace.lease_seconds):
                lost.set()
                return

    heart = threading.Thread(target=renew, name="lease", daemon=True)
    heart.start()
    try:
        yield lost
    finally:
        over.set()
        heart.join()


def _outcomes(label: Label, chunk: Chunk) -> Iterator[tuple[int, Outcome]]:
    """Label each unit of a chunk; an error becomes the failure of a single unit."""
    left = set(chunk.indices)
    try:
        for description in label(chunk.parent, chunk.indices):
            if description.feature in left:
                left.discard(description.feature)
                yield description.feature, description
    except Exception as error:
        if _ends_worker(error):
            raise
        _note(error, chunk.parent, f"{len(left)} units are tried one by one")
        for index in chunk.indices:
            if index in left:
                yield index, _alone(label, chunk.parent, index)
        return
    for index in left:
        yield index, Failure("INTERNAL", "the describer gave no description")


def _alone(label: Label, parent: str, index: int) -> Outcome:
    try:
        descriptions = list(label(parent, [index]))
    except Exception as error:
        if _ends_worker(error):
            raise
        _note(error, parent, f"unit {index} has failed")
        return Failure.of(error)
    if [description.feature for description in descriptions] != [index]:
        return Failure("INTERNAL", "the describer gave no description")
    return descriptions[0]


def _ends_worker(error: Exception) -> bool:
    """Whether every further unit would fail here as well, through no fault of its own."""
    return isinstance(error, RemoteServerAwayError) or is_lost(error)


def _note(error: Exception, parent: str, what: str) -> None:
    expected = isinstance(error, VisionSaeError)
    text = error if expected else type(error).__name__
    _LOG.warning("%s: %s: %s", parent, what, text, exc_info=None if expected else error)

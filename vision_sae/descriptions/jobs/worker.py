"""A worker: takes units of a job, has them labelled, and hands in what came out."""

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

from vision_sae.descriptions.jobs.job import Chunk, Failure, Job
from vision_sae.descriptions.jobs.queue import LabelJobs, Outcome
from vision_sae.descriptions.protocol import Description
from vision_sae.errors import RemoteServerAwayError, VisionSaeError

Label = Callable[[str, Sequence[int]], Iterable[Description]]
"""(parent, indices) -> descriptions of these units, in any order; each is handed in as it comes."""

_LOG = logging.getLogger("vision_sae")
_RENEWALS = 3
"""Times that a lease is renewed before it would expire."""


@dataclass(frozen=True)
class Pace:
    """How a worker goes about it."""

    chunk: int = 32
    """Units leased at a time."""
    lease_seconds: float = 60.0
    """How long a lease outlives a worker that died."""
    hand_in_seconds: float = 1.0
    """How often finished units are stored, at most."""
    wait_seconds: float = 1.0
    """How often to look for work while other workers hold what is left."""


def run_worker(
    jobs: LabelJobs,
    name: str,
    label: Label,
    *,
    pace: Pace | None = None,
    stop: threading.Event | None = None,
) -> Job:
    """Work on a job until it has ended, or until ``stop`` is set; gives the job as it then is.

    Any number of workers, in any number of processes, may do this at once. A unit whose labelling
    raises is tried once more alone, and then counts as failed; the others go on.

    Raises `RemoteServerAwayError` when a server that labelling asks is away; what is not finished
    waits for the next worker.
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
    away: RemoteServerAwayError | None = None
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
        except RemoteServerAwayError as error:
            away = error
    held = not lost.is_set() and jobs.finish(name, chunk, ready, seconds=pace.lease_seconds)
    if held and left:
        jobs.release(name, chunk.lease)
    if away is not None:
        raise away


@contextmanager
def _renewing(jobs: LabelJobs, name: str, chunk: Chunk, pace: Pace) -> Iterator[threading.Event]:
    """Keep the lease while units take their time; the event says that it is lost."""
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
    """What labelling gives for each unit of a chunk; errors become failures of single units."""
    left = set(chunk.indices)
    try:
        for made in label(chunk.parent, chunk.indices):
            if made.feature in left:
                left.discard(made.feature)
                yield made.feature, made
    except RemoteServerAwayError:
        raise
    except Exception as error:
        _note(error, chunk.parent, f"{len(left)} units are tried one by one")
        for index in chunk.indices:
            if index in left:
                yield index, _alone(label, chunk.parent, index)
        return
    for index in left:
        yield index, Failure("INTERNAL", "the describer gave no description")


def _alone(label: Label, parent: str, index: int) -> Outcome:
    try:
        made = list(label(parent, [index]))
    except RemoteServerAwayError:
        raise
    except Exception as error:
        _note(error, parent, f"unit {index} has failed")
        return Failure.of(error)
    if [description.feature for description in made] != [index]:
        return Failure("INTERNAL", "the describer gave no description")
    return made[0]


def _note(error: Exception, parent: str, what: str) -> None:
    expected = isinstance(error, VisionSaeError)
    said = error if expected else type(error).__name__
    _LOG.warning("%s: %s: %s", parent, what, said, exc_info=None if expected else error)

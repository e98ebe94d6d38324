"""Workers on a label job that a test kills."""

from __future__ import annotations

import hashlib
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from sqlalchemy.engine.default import DefaultDialect

from tests.fault.killed import die_before_call
from tests.worlds.labels import made
from vision_sae.descriptions.protocol import Description, Score
from vision_sae.labels import store as store_module
from vision_sae.labels.jobs import leases as leases_module
from vision_sae.labels.jobs.queue import LabelJobs
from vision_sae.labels.jobs.worker import Pace, run_worker
from vision_sae.labels.store import LabelStore

PACE = Pace(chunk=5, lease_seconds=0.3, hand_in_seconds=0, wait_seconds=0.02)
_THINKING = 0.002


class Describer:
    """Says of a unit what its number alone decides; every fifth unit it has no words for."""

    def __init__(self, meeting: Barrier | None = None) -> None:
        self._meeting = meeting

    def one(self, index: int) -> Description:
        """The description of a unit; the first one only after a meeting has begun and ended."""
        if self._meeting is not None:
            self._meeting.wait()
            self._meeting.wait()
            self._meeting = None
        time.sleep(_THINKING)
        said = hashlib.sha256(str(index).encode()).hexdigest()[:8]
        score = Score("pmi", index / 7, index)
        return made(index, said if index % 5 else None, scores=(score,), evidence=(index,))

    def label(self, _parent: str, indices: Sequence[int]) -> Iterator[Description]:
        """Of some units."""
        for index in indices:
            yield self.one(index)


PLACES: dict[str, tuple[Any, str]] = {
    "describing": (Describer, "one"),
    "claiming": (LabelJobs, "claim"),
    "handing in": (LabelJobs, "finish"),
    "storing": (LabelStore, "add_within"),
    "halfway through storing": (store_module, "index_texts"),
    "counting": (leases_module, "Counter"),
    "committing": (DefaultDialect, "do_commit"),
}


def work(labels: str | Path, place: str, number: int, meeting: Barrier | None) -> None:
    """Work on the job until it has ended, or die before the ``number``-th call of a place."""
    if place:
        die_before_call(*PLACES[place], number)
    pace = replace(PACE, lease_seconds=60) if meeting else PACE
    run_worker(LabelJobs(LabelStore(labels)), "job", Describer(meeting).label, pace=pace)


def start(
    labels: str | Path, place: str = "", number: int = 0, meeting: Barrier | None = None
) -> BaseProcess:
    """A worker in a process of its own."""
    process = _context().Process(target=work, args=(labels, place, number, meeting))
    process.start()
    return process


def meeting(parties: int) -> Barrier:
    """Where workers and their test wait for one another."""
    return _context().Barrier(parties, timeout=60)


def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context

"""The lane in the background in which a server works on label jobs, one at a time.

Jobs are kept in the label store: one that was under way when a server stopped or died is gone on
with by the next server, or by any other that shares the store.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Sequence

from vision_sae.descriptions.jobs.job import Failure, Job
from vision_sae.descriptions.jobs.worker import Pace, run_worker
from vision_sae.descriptions.protocol import Description
from vision_sae.models.registry import shown_name
from vision_sae_server.state import State

_LOG = logging.getLogger("vision_sae_server")
_PACE = Pace(chunk=16, lease_seconds=30)
_LOOK_SECONDS = 1.0
"""How often to look for jobs that another server put in the queue."""


class JobLane:
    """One thread that works on the oldest job it can."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._news = threading.Event()
        self._thread = threading.Thread(target=self._run, name="label jobs", daemon=True)

    def start(self) -> None:
        """Begin; goes on until the state's ``stopping`` is set."""
        self._thread.start()

    def wake(self) -> None:
        """Look for a job now."""
        self._news.set()

    def join(self) -> None:
        """Wait for the unit in hand, after ``stopping`` was set."""
        self.wake()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._state.stopping.is_set():
            try:
                job = self._next()
                if job is not None:
                    self._work(job)
                    continue
            except Exception:  # a database that is away for a while must not end the lane
                _LOG.exception("label jobs are interrupted; trying again")
            self._news.wait(_LOOK_SECONDS)
            self._news.clear()

    def _next(self) -> Job | None:
        """The oldest open job that was asked of a server with this describer and these units."""
        for job in reversed(self._state.jobs.all()):
            target = job.target
            ours = target.asked and target.describer in self._state.labelling.describers
            if job.open and ours and all(map(self._state.evidence, target.identities)):
                return job
        return None

    def _work(self, job: Job) -> None:
        describer = self._state.labelling.describers[job.target.describer]
        if reason := self._changed(job):
            self._state.jobs.fail(job.name, Failure("ARTIFACT_MISMATCH", reason))
            return

        def label(parent: str, indices: Sequence[int]) -> Iterable[Description]:
            evidence = self._state.evidence(parent)
            assert evidence is not None  # `_next` chose a job of ours, and bundles do not go away
            return describer.label(evidence, indices, job.target.config.get("metrics", ()))

        run_worker(self._state.jobs, job.name, label, pace=_PACE, stop=self._state.stopping)

    def _changed(self, job: Job) -> str:
        """What is not as it was when the job was created; empty when all is."""
        for parent, identity in job.target.identities.items():
            evidence = self._state.evidence(parent)
            if evidence is None or evidence.identity != identity:
                return f"{parent} was built anew since the job was created; create another"
        version = self._state.labelling.describers[job.target.describer].version
        if job.target.config.get("version", version) != version:
            return f"the describer {job.target.describer} was renewed; create another job"
        clip = self._state.labelling.clip
        if (before := job.target.config.get("clip", clip)) != clip:
            names = [shown_name(name) if name else "nothing" for name in (before, clip)]
            return f"labels were judged by {names[0]}, here by {names[1]}"
        made_by = self._state.labelling.describers[job.target.describer].identity()
        if job.target.config.get("identity", made_by) != made_by:
            return "the describer's settings, or the files they name, changed; create another job"
        return ""

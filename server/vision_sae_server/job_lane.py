"""The background thread in which a server works on label jobs, one at a time.

Jobs are kept in the label store. When a server stops or dies, the next server, or another one that
shares the store, continues its job.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Sequence

from vision_sae.descriptions.protocol import Description
from vision_sae.labels.jobs.job import Failure, Job
from vision_sae.labels.jobs.worker import Pace, run_worker
from vision_sae.models.names import shown_name
from vision_sae_server.runtime.devices import end_if_lost
from vision_sae_server.state import State

_LOG = logging.getLogger("vision_sae_server")
_PACE = Pace(chunk=16, lease_seconds=30)
_LOOK_SECONDS = 1.0
"""Seconds between two looks for jobs that other servers put into the queue."""


class JobLane:
    """One thread that works on the oldest open job that this server can do."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._news = threading.Event()
        self._thread = threading.Thread(target=self._run, name="label jobs", daemon=True)

    def start(self) -> None:
        """Start the thread, which runs until ``stopping`` of the state is set."""
        self._thread.start()

    def wake(self) -> None:
        """Look for a job now, without waiting for the next regular look."""
        self._news.set()

    def join(self) -> None:
        """Wait until the current unit is labelled; ``stopping`` must have been set."""
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
            except Exception as error:  # a database outage must not end the thread
                end_if_lost(error)
                _LOG.exception("label jobs are interrupted; trying again")
            self._news.wait(_LOOK_SECONDS)
            self._news.clear()

    def _next(self) -> Job | None:
        """The oldest open job of a client whose describer and units this server has."""
        for job in reversed(self._state.jobs.all()):
            target = job.target
            can_label = target.asked and target.describer in self._state.labelling.describers
            if job.open and can_label and all(map(self._state.evidence, target.identities)):
                return job
        return None

    def _work(self, job: Job) -> None:
        describer = self._state.labelling.describers[job.target.describer]
        if reason := self._changed(job):
            self._state.jobs.fail(job.name, Failure("ARTIFACT_MISMATCH", reason))
            return

        def label(parent: str, indices: Sequence[int]) -> Iterable[Description]:
            evidence = self._state.evidence(parent)
            assert evidence is not None  # `_next` checked it, and bundles stay served
            return describer.label(evidence, indices, job.target.config.get("metrics", ()))

        run_worker(self._state.jobs, job.name, label, pace=_PACE, stop=self._state.stopping)

    def _changed(self, job: Job) -> str:
        """What changed since the job was created, as a message; empty when nothing changed."""
        for parent, identity in job.target.identities.items():
            evidence = self._state.evidence(parent)
            if evidence is None or evidence.identity != identity:
                return f"{parent} was rebuilt since the job was created; create another job"
        version = self._state.labelling.describers[job.target.describer].version
        if job.target.config.get("version", version) != version:
            return f"the describer {job.target.describer} was renewed; create another job"
        clip = self._state.labelling.clip
        if (before := job.target.config.get("clip", clip)) != clip:
            names = [shown_name(name) if name else "nothing" for name in (before, clip)]
            return f"labels were judged by {names[0]}, here by {names[1]}"
        settings = self._state.labelling.describers[job.target.describer].identity()
        if job.target.config.get("identity", settings) != settings:
            return "the describer's settings, or the files they name, changed; create another job"
        return ""

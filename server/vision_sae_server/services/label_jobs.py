"""LabelJobService: background jobs that label whole dictionaries or layers."""

from __future__ import annotations

import asyncio
import fnmatch
import time
from collections.abc import AsyncIterator, Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import grpc
import grpc.aio
from google.protobuf.json_format import MessageToDict

from vision_sae.errors import InvalidInputError, NotConfiguredError
from vision_sae.labels.entries import Unit
from vision_sae.labels.jobs.job import Budget, Finished, Job, JobTarget, Progress
from vision_sae.v1 import label_job_service_pb2 as pb
from vision_sae.v1 import label_job_service_pb2_grpc
from vision_sae_server.answers.descriptions import description_message, feature_name
from vision_sae_server.answers.feature_values import passing
from vision_sae_server.answers.label_jobs import (
    PREFIX,
    failure_message,
    job_values,
    label_job_message,
)
from vision_sae_server.labelling import metric_names
from vision_sae_server.requests.label_jobs import duration_seconds, resume_sequence
from vision_sae_server.requests.listing import matcher, page
from vision_sae_server.runtime.callers import caller
from vision_sae_server.state import State

_FIELDS = ("state", "dictionary", "model", "describer", "creator")
_POLL_SECONDS = 0.25
_PROGRESS_SECONDS = 1.0
_PAGE = 500


class LabelJobServicer(label_job_service_pb2_grpc.LabelJobServiceServicer):
    """See ``label_job_service.proto``."""

    def __init__(self, state: State, wake: Callable[[], None]) -> None:
        """``wake`` is called for each new job."""
        self._state = state
        self._wake = wake

    async def CreateLabelJob(
        self, request: pb.CreateLabelJobRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.CreateLabelJobResponse:
        """Put a job in the queue."""
        creator = caller(context, self._state.config.caller_key)
        job = await self._state.searching.run(lambda: self._create(request, creator))
        self._wake()
        return pb.CreateLabelJobResponse(label_job=job)

    def _create(self, request: pb.CreateLabelJobRequest, creator: str) -> pb.LabelJob:
        requested = request.label_job
        name, describer = self._state.labelling.describer(requested.describer)
        metrics = metric_names(requested.metrics, describer.metrics, name)
        units = self._units(requested)
        parents = dict.fromkeys(unit.parent for unit in units)
        if not requested.force:
            units = self._undescribed(units, name)
        kind = requested.WhichOneof("units") or ""
        target = JobTarget(
            describer=name,
            identities={parent: self._identity(parent) for parent in parents},
            asked={kind: MessageToDict(getattr(requested, kind), preserving_proto_field_name=True)},
            config={
                "metrics": metrics,
                "force": requested.force,
                "version": describer.version,
                "clip": self._state.labelling.clip,
                "identity": describer.identity(),
            },
        )
        seconds = duration_seconds(requested.budget.max_duration)
        job = self._state.jobs.create(
            units,
            target,
            budget=Budget(requested.budget.max_units or None, seconds or None),
            name=request.label_job_id,
            creator=creator,
            request_id=request.request_id,
        )
        return self._message(job)

    def _units(self, job: pb.LabelJob) -> list[Unit]:
        """The units that a requested job labels."""
        if job.WhichOneof("units") == "features":
            return self._features(job.features)
        return [
            Unit(parent, index)
            for parent in self._neuron_sites(job.neurons)
            for index in range(self._state.labelling.neurons[parent].width)
        ]

    def _features(self, selection: pb.FeatureUnits) -> list[Unit]:
        units = self._state.units(selection.dictionary)
        for index in selection.indices:
            units.check(index)
        keep = passing(units, selection.filter)
        candidates: Iterable[int] = selection.indices
        if not selection.indices:
            everything = range(units.evidence.width)
            fire = (i for i in everything if units.figures(i)["image_count"])
            candidates = everything if selection.filter.strip() else fire
        return [Unit(units.evidence.name, index) for index in keep(list(candidates))]

    def _neuron_sites(self, selection: pb.NeuronUnits) -> list[str]:
        """Names ``models/{model}/sites/{site}`` of the sites that match the patterns."""
        served = self._state.model(selection.model, "label_job.neurons.model")
        sites, chosen = served.model.sites, dict[str, None]()
        for pattern in selection.sites:
            matching = [site for site in sites if fnmatch.fnmatchcase(site, pattern)]
            if not matching:
                raise InvalidInputError(
                    f"no site of {selection.model} matches {pattern!r}; GetModel lists its sites",
                    field="label_job.neurons.sites",
                )
            chosen |= dict.fromkeys(f"{selection.model}/sites/{site}" for site in matching)
        missing = [site for site in chosen if site not in self._state.labelling.neurons]
        if missing:
            raise NotConfiguredError(
                f"this server has no evidence of the neurons of {missing[0]}",
                field="label_job.neurons.sites",
            )
        return list(chosen)

    def _undescribed(self, units: list[Unit], describer: str) -> list[Unit]:
        """The units that neither this describer nor a person has described."""
        known = {
            Unit(parent, index)
            for parent in {unit.parent for unit in units}
            for index, outline in self._state.labels.outlines(parent).items()
            if outline.origin == "person" or outline.describer == describer
        }
        return [unit for unit in units if unit not in known]

    def _identity(self, parent: str) -> str:
        evidence = self._state.evidence(parent)
        assert evidence is not None  # the units came from it
        return evidence.identity

    async def GetLabelJob(
        self, request: pb.GetLabelJobRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.GetLabelJobResponse:
        """One job."""
        name = request.name.removeprefix(PREFIX)
        job = await self._state.searching.run(lambda: self._message(self._state.jobs.get(name)))
        return pb.GetLabelJobResponse(label_job=job)

    async def ListLabelJobs(
        self, request: pb.ListLabelJobsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.ListLabelJobsResponse:
        """Jobs, newest first."""
        matches = matcher(request.filter, _FIELDS)

        def listing() -> pb.ListLabelJobsResponse:
            kept = [job for job in self._state.jobs.all() if matches(job_values(job))]
            rows, following = page(kept, request.page_size, request.page_token)
            return pb.ListLabelJobsResponse(
                label_jobs=map(self._message, rows), next_page_token=following
            )

        return await self._state.searching.run(listing)

    async def CancelLabelJob(
        self, request: pb.CancelLabelJobRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.CancelLabelJobResponse:
        """Stop a job; labels made so far stay."""
        name = request.name.removeprefix(PREFIX)
        job = await self._state.searching.run(lambda: self._message(self._state.jobs.cancel(name)))
        return pb.CancelLabelJobResponse(label_job=job)

    async def WatchLabelJob(
        self, request: pb.WatchLabelJobRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.WatchLabelJobResponse]:
        """Every labelled unit, in the order in which they finish, and the job's progress."""
        name, seen = request.name.removeprefix(PREFIX), resume_sequence(request.resume_token)
        shown, shown_at = None, 0.0
        while True:
            news = await self._state.searching.run(partial(self._news, name, seen))
            for unit in news.units:
                seen = unit.sequence
                if not request.progress_only:
                    yield pb.WatchLabelJobResponse(
                        unit=self._unit(unit), resume_token=str(unit.sequence)
                    )
            if len(news.units) == _PAGE:
                continue
            ended = not news.job.open
            now = time.monotonic()
            changed = (news.job.state, news.job.done) != shown
            if ended or (changed and now - shown_at >= _PROGRESS_SECONDS):
                shown, shown_at = (news.job.state, news.job.done), now
                yield pb.WatchLabelJobResponse(
                    label_job=label_job_message(news.job, news.progress), resume_token=str(seen)
                )
            if ended:
                return
            if self._state.stopping.is_set():
                await context.abort(
                    grpc.StatusCode.UNAVAILABLE, "the server stops; resume with the last token"
                )
            await asyncio.sleep(_POLL_SECONDS)

    def _news(self, name: str, after: int) -> _News:
        """The units finished after the unit number ``after``, and the job's progress. The job is
        read before its units, so that an ended job has all of its units."""
        jobs = self._state.jobs
        job, progress = jobs.get(name), jobs.progress(name)
        if after > job.total:
            raise InvalidInputError(
                f"the resume token is not of {PREFIX}{name}; start without one",
                field="resume_token",
            )
        return _News(job, progress, jobs.finished(name, after=after, limit=_PAGE))

    def _unit(self, finished: Finished) -> pb.LabelledUnit:
        message = pb.LabelledUnit(feature=feature_name(finished.unit))
        if finished.failure is not None:
            message.error.CopyFrom(failure_message(finished.failure))
        elif finished.entry is not None:
            message.description.CopyFrom(description_message(None, finished.entry))
        return message

    def _message(self, job: Job) -> pb.LabelJob:
        return label_job_message(job, self._state.jobs.progress(job.name))


class _News(NamedTuple):
    job: Job
    progress: Progress
    units: list[Finished]

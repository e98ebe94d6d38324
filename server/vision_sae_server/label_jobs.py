"""LabelJobService: labels for whole dictionaries and layers, in the background."""

from __future__ import annotations

import asyncio
import fnmatch
import time
from collections.abc import AsyncIterator, Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import grpc
import grpc.aio
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict, ParseDict

from vision_sae.descriptions.jobs.job import Budget, Failure, Finished, Job, Progress, Target
from vision_sae.descriptions.store import Unit
from vision_sae.errors import InvalidInputError, NotConfiguredError
from vision_sae.resources import dictionary_of
from vision_sae.v1 import description_pb2, label_job_service_pb2_grpc, measure_pb2
from vision_sae.v1 import label_job_service_pb2 as pb
from vision_sae_server import messages
from vision_sae_server.callers import caller
from vision_sae_server.errors import grpc_code
from vision_sae_server.feature_values import passing
from vision_sae_server.labelling import metric_names
from vision_sae_server.listing import Values, matcher, page
from vision_sae_server.state import State

_PREFIX = "labelJobs/"
_FIELDS = ("state", "dictionary", "model", "describer", "creator")
_POLL_SECONDS = 0.25
_PROGRESS_SECONDS = 1.0
_PAGE = 500
_MOST_SECONDS = 315_576_000_000
"""Of a google.protobuf.Duration: 10,000 years."""


class LabelJobServicer(label_job_service_pb2_grpc.LabelJobServiceServicer):
    """See ``label_job_service.proto``."""

    def __init__(self, state: State, wake: Callable[[], None]) -> None:
        """``wake`` is called when there is a new job."""
        self._state = state
        self._wake = wake

    async def CreateLabelJob(
        self, request: pb.CreateLabelJobRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.CreateLabelJobResponse:
        """Put a job in the queue."""
        creator = caller(context, self._state.config.caller_key)
        made = await self._state.searching.run(lambda: self._create(request, creator))
        self._wake()
        return pb.CreateLabelJobResponse(label_job=made)

    def _create(self, request: pb.CreateLabelJobRequest, creator: str) -> pb.LabelJob:
        asked = request.label_job
        name, describer = self._state.labelling.describer(asked.describer)
        metrics = metric_names(asked.metrics, describer.metrics, name)
        units = self._units(asked)
        parents = dict.fromkeys(unit.parent for unit in units)
        if not asked.force:
            units = self._undescribed(units, name)
        kind = asked.WhichOneof("units") or ""
        target = Target(
            describer=name,
            identities={parent: self._identity(parent) for parent in parents},
            asked={kind: MessageToDict(getattr(asked, kind), preserving_proto_field_name=True)},
            config={
                "metrics": metrics,
                "force": asked.force,
                "version": describer.version,
                "clip": self._state.labelling.clip,
                "identity": describer.identity(),
            },
        )
        seconds = _seconds(asked.budget.max_duration)
        job = self._state.jobs.create(
            units,
            target,
            budget=Budget(asked.budget.max_units or None, seconds or None),
            name=request.label_job_id,
            creator=creator,
            request_id=request.request_id,
        )
        return self._message(job)

    def _units(self, asked: pb.LabelJob) -> list[Unit]:
        """The units that a job is about."""
        if asked.WhichOneof("units") == "features":
            return self._features(asked.features)
        return [
            Unit(parent, index)
            for parent in self._neuron_sites(asked.neurons)
            for index in range(self._state.labelling.neurons[parent].width)
        ]

    def _features(self, asked: pb.FeatureUnits) -> list[Unit]:
        units = self._state.units(asked.dictionary)
        for index in asked.indices:
            units.check(index)
        keep = passing(units, asked.filter)
        candidates: Iterable[int] = asked.indices
        if not asked.indices:
            everything = range(units.evidence.width)
            fire = (i for i in everything if units.figures(i)["image_count"])
            candidates = everything if asked.filter.strip() else fire
        return [Unit(units.evidence.name, index) for index in keep(list(candidates))]

    def _neuron_sites(self, asked: pb.NeuronUnits) -> list[str]:
        """``models/{model}/sites/{site}`` of the sites that match."""
        served = self._state.model(asked.model, "label_job.neurons.model")
        sites, chosen = served.model.sites, dict[str, None]()
        for pattern in asked.sites:
            found = [site for site in sites if fnmatch.fnmatchcase(site, pattern)]
            if not found:
                raise InvalidInputError(
                    f"no site of {asked.model} matches {pattern!r}; GetModel lists its sites",
                    field="label_job.neurons.sites",
                )
            chosen |= dict.fromkeys(f"{asked.model}/sites/{site}" for site in found)
        missing = [site for site in chosen if site not in self._state.labelling.neurons]
        if missing:
            raise NotConfiguredError(
                f"this server has no evidence of the neurons of {missing[0]}",
                field="label_job.neurons.sites",
            )
        return list(chosen)

    def _undescribed(self, units: list[Unit], describer: str) -> list[Unit]:
        """Units without a description by this describer, or by a person."""
        known = {
            Unit(parent, index)
            for parent in {unit.parent for unit in units}
            for index, made in self._state.labels.outlines(parent).items()
            if made.origin == "person" or made.describer == describer
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
        name = request.name.removeprefix(_PREFIX)
        job = await self._state.searching.run(lambda: self._message(self._state.jobs.get(name)))
        return pb.GetLabelJobResponse(label_job=job)

    async def ListLabelJobs(
        self, request: pb.ListLabelJobsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.ListLabelJobsResponse:
        """Jobs, newest first."""
        matches = matcher(request.filter, _FIELDS)

        def listing() -> pb.ListLabelJobsResponse:
            kept = [job for job in self._state.jobs.all() if matches(_values(job))]
            rows, following = page(kept, request.page_size, request.page_token)
            return pb.ListLabelJobsResponse(
                label_jobs=map(self._message, rows), next_page_token=following
            )

        return await self._state.searching.run(listing)

    async def CancelLabelJob(
        self, request: pb.CancelLabelJobRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.CancelLabelJobResponse:
        """Stop a job; labels made so far stay."""
        name = request.name.removeprefix(_PREFIX)
        job = await self._state.searching.run(lambda: self._message(self._state.jobs.cancel(name)))
        return pb.CancelLabelJobResponse(label_job=job)

    async def WatchLabelJob(
        self, request: pb.WatchLabelJobRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.WatchLabelJobResponse]:
        """Every labelled unit in the order of their finishing, and the job's progress."""
        name, seen = request.name.removeprefix(_PREFIX), _sequence(request.resume_token)
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
                    label_job=label_job(news.job, news.progress), resume_token=str(seen)
                )
            if ended:
                return
            if self._state.stopping.is_set():
                await context.abort(
                    grpc.StatusCode.UNAVAILABLE, "the server stops; resume with the last token"
                )
            await asyncio.sleep(_POLL_SECONDS)

    def _news(self, name: str, after: int) -> _News:
        """What happened after a unit. The job is read first: when it has ended, so have units."""
        jobs = self._state.jobs
        job, progress = jobs.get(name), jobs.progress(name)
        if after > job.total:
            raise InvalidInputError(
                f"the resume token is not of {_PREFIX}{name}; start without one",
                field="resume_token",
            )
        return _News(job, progress, jobs.finished(name, after=after, limit=_PAGE))

    def _unit(self, done: Finished) -> pb.LabelledUnit:
        message = pb.LabelledUnit(feature=messages.feature_name(done.unit))
        if done.failure is not None:
            message.error.CopyFrom(_item_error(done.failure))
        elif done.entry is not None:
            message.description.CopyFrom(messages.description(None, done.entry))
        return message

    def _message(self, job: Job) -> pb.LabelJob:
        return label_job(job, self._state.jobs.progress(job.name))


class _News(NamedTuple):
    job: Job
    progress: Progress
    units: list[Finished]


def _seconds(duration: Duration) -> float:
    """A duration of a request in seconds; raises `InvalidInputError` for one that is none."""
    if not (0 <= duration.seconds <= _MOST_SECONDS and 0 <= duration.nanos < 10**9):
        raise InvalidInputError(
            f"a duration has 0 to {_MOST_SECONDS:,} seconds and 0 to 999,999,999 nanos; leave it "
            "out for no limit",
            field="label_job.budget.max_duration",
        )
    return duration.seconds + duration.nanos / 1e9


def _sequence(token: str) -> int:
    if token and not (token.isdecimal() and token.isascii()):
        raise InvalidInputError(
            f"resume_token {token!r} is not one this server gave; start without one",
            field="resume_token",
        )
    return int(token or 0)


def _asked(target: Target) -> dict[str, Any]:
    """What a job is about, as JSON of a LabelJob; told from its units where no client asked."""
    if target.asked or not target.identities:
        return target.asked
    parents = list(target.identities)
    if parents[0].startswith("dictionaries/"):
        return {"features": {"dictionary": parents[0]}}
    model = parents[0].partition("/sites/")[0]
    return {"neurons": {"model": model, "sites": [p.partition("/sites/")[2] for p in parents]}}


def _values(job: Job) -> Values:
    asked = _asked(job.target)
    return {
        "state": job.state,
        "dictionary": asked.get("features", {}).get("dictionary"),
        "model": asked.get("neurons", {}).get("model"),
        "describer": job.target.describer,
        "creator": job.creator,
    }


def _item_error(failure: Failure) -> measure_pb2.ItemError:
    return measure_pb2.ItemError(
        code=grpc_code(failure.reason),
        reason=failure.reason,
        message=failure.message,
        field=failure.field,
    )


def label_job(job: Job, progress: Progress) -> pb.LabelJob:
    """A job as a message."""
    message = pb.LabelJob(
        name=_PREFIX + job.name,
        describer=job.target.describer,
        force=job.target.config.get("force", False),
        metrics=[
            messages.enum_value(description_pb2.ScoreMetric, "SCORE_METRIC", metric)
            for metric in job.target.config.get("metrics", ())
        ],
        state=messages.enum_value(pb.LabelJobState, "LABEL_JOB_STATE", job.state),
        progress=pb.LabelJobProgress(
            total=job.total,
            done=job.done,
            labelled=job.labelled,
            abstained=job.abstained,
            failed=job.failed,
            rate=progress.rate,
            workers=progress.workers,
        ),
        creator=job.creator,
        dictionaries=[dictionary_of(parent) for parent in job.target.identities],
    )
    ParseDict(_asked(job.target), message)
    message.progress.used.FromMicroseconds(round(job.used * 1e6))
    if progress.remaining is not None:
        message.progress.remaining.FromMicroseconds(round(progress.remaining * 1e6))
    if job.budget.units is not None:
        message.budget.max_units = job.budget.units
    if job.budget.seconds is not None:
        message.budget.max_duration.FromMicroseconds(round(job.budget.seconds * 1e6))
    if job.error is not None:
        message.error.CopyFrom(_item_error(job.error))
    message.create_time.FromDatetime(job.created)
    if job.started is not None:
        message.start_time.FromDatetime(job.started)
    if job.ended is not None:
        message.end_time.FromDatetime(job.ended)
    return message

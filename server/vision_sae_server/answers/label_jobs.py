"""Label jobs, as messages of ``label_job_service.proto``."""

from __future__ import annotations

from typing import Any

from google.protobuf.json_format import ParseDict

from vision_sae.labels.jobs.job import Failure, Job, JobTarget, Progress
from vision_sae.resources import dictionary_of
from vision_sae.v1 import description_pb2, measure_pb2
from vision_sae.v1 import label_job_service_pb2 as pb
from vision_sae_server.answers.enums import enum_value
from vision_sae_server.requests.listing import Values
from vision_sae_server.runtime.errors import grpc_code

PREFIX = "labelJobs/"
"""The prefix of the resource names of label jobs."""


def _units(target: JobTarget) -> dict[str, Any]:
    """The units of a job, as JSON fields of a LabelJob. A job that no client requested has them
    derived from its identities."""
    if target.asked or not target.identities:
        return target.asked
    parents = list(target.identities)
    if parents[0].startswith("dictionaries/"):
        return {"features": {"dictionary": parents[0]}}
    model = parents[0].partition("/sites/")[0]
    return {"neurons": {"model": model, "sites": [p.partition("/sites/")[2] for p in parents]}}


def job_values(job: Job) -> Values:
    """The values of a job that filters can name."""
    units = _units(job.target)
    return {
        "state": job.state,
        "dictionary": units.get("features", {}).get("dictionary"),
        "model": units.get("neurons", {}).get("model"),
        "describer": job.target.describer,
        "creator": job.creator,
    }


def failure_message(failure: Failure) -> measure_pb2.ItemError:
    """The error of a unit or of a job."""
    return measure_pb2.ItemError(
        code=grpc_code(failure.reason),
        reason=failure.reason,
        message=failure.message,
        field=failure.field,
    )


def label_job_message(job: Job, progress: Progress) -> pb.LabelJob:
    """A job with its progress."""
    message = pb.LabelJob(
        name=PREFIX + job.name,
        describer=job.target.describer,
        force=job.target.config.get("force", False),
        metrics=[
            enum_value(description_pb2.ScoreMetric, "SCORE_METRIC", metric)
            for metric in job.target.config.get("metrics", ())
        ],
        state=enum_value(pb.LabelJobState, "LABEL_JOB_STATE", job.state),
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
    ParseDict(_units(job.target), message)
    message.progress.used.FromMicroseconds(round(job.used * 1e6))
    if progress.remaining is not None:
        message.progress.remaining.FromMicroseconds(round(progress.remaining * 1e6))
    if job.budget.units is not None:
        message.budget.max_units = job.budget.units
    if job.budget.seconds is not None:
        message.budget.max_duration.FromMicroseconds(round(job.budget.seconds * 1e6))
    if job.error is not None:
        message.error.CopyFrom(failure_message(job.error))
    message.create_time.FromDatetime(job.created)
    if job.started is not None:
        message.start_time.FromDatetime(job.started)
    if job.ended is not None:
        message.end_time.FromDatetime(job.ended)
    return message

"""Requests about label jobs."""

from __future__ import annotations

from vision_sae.v1 import label_job_service_pb2 as pb
from vision_sae.v1.label_job_service_pb2 import LabelJob
from vision_sae_client.requests.names import job_name
from vision_sae_client.values import sendable


@sendable
def create_label_job(
    job: LabelJob, *, name: str = "", request_id: str = ""
) -> pb.CreateLabelJobRequest:
    """A new label job."""
    return pb.CreateLabelJobRequest(label_job=job, label_job_id=name, request_id=request_id)


@sendable
def get_label_job(name: str) -> pb.GetLabelJobRequest:
    """One label job."""
    return pb.GetLabelJobRequest(name=job_name(name))


@sendable
def list_label_jobs(*, filter: str = "") -> pb.ListLabelJobsRequest:
    """The first page of label jobs."""
    return pb.ListLabelJobsRequest(filter=filter)


@sendable
def cancel_label_job(name: str) -> pb.CancelLabelJobRequest:
    """Stop a label job."""
    return pb.CancelLabelJobRequest(name=job_name(name))


@sendable
def watch_label_job(
    name: str, *, resume_token: str = "", progress_only: bool = False
) -> pb.WatchLabelJobRequest:
    """Follow a label job; the answer is a stream."""
    return pb.WatchLabelJobRequest(
        name=job_name(name), resume_token=resume_token, progress_only=progress_only
    )

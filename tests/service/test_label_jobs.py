"""LabelJobService over a real channel: created, worked on in the background, watched, resumed."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from vision_sae_server import app, job_lane
from vision_sae_server.labelling import Labelling

from tests.worlds import serving
from tests.worlds import tiny as worlds
from tests.worlds.labels import made
from tests.worlds.serving import DICTIONARY, refusal
from vision_sae.activations.store import ImageRecord
from vision_sae.bundles.read import Bundle
from vision_sae.descriptions.protocol import Description
from vision_sae.errors import InvalidImageError
from vision_sae.evidence.arrays import ArrayEvidence
from vision_sae.evidence.bundle import BundleEvidence
from vision_sae.labels.entries import Unit
from vision_sae.labels.jobs.job import JobTarget
from vision_sae.labels.jobs.queue import LabelJobs
from vision_sae.labels.store import LabelStore
from vision_sae.v1 import description_pb2
from vision_sae.v1 import label_job_service_pb2 as pb
from vision_sae.v1 import label_job_service_pb2_grpc as grpc_jobs

INVALID = grpc.StatusCode.INVALID_ARGUMENT
SITE = "models/tiny/sites/blocks.1.mlp"


class Gated:
    """A describer that can be held up at one unit, and fails at another."""

    version = 1
    metrics = ("pmi", "detection_auc")

    def __init__(self) -> None:
        self.settings = "as they are"
        self.hold_at = -1
        self.fail_at = -1
        self.error: Exception = InvalidImageError("no such picture", field="image")
        self.open = threading.Event()
        self.calls: list[tuple[str, int, tuple[str, ...]]] = []

    def identity(self) -> str:
        return self.settings

    def label(
        self, evidence: Any, units: Sequence[int], metrics: Sequence[str]
    ) -> Iterator[Description]:
        for unit in units:
            if unit == self.hold_at:
                assert self.open.wait(20)
            if unit == self.fail_at:
                raise self.error
            self.calls.append((evidence.name, unit, tuple(metrics)))
            yield made(unit, f"unit {unit}" if unit % 2 == 0 else None, describer="gated")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return serving.zoo(tmp_path_factory.mktemp("zoo"), described=False)


@pytest.fixture
def gated() -> Gated:
    return Gated()


def neurons(width: int = 4) -> ArrayEvidence:
    """Silent neurons of one picture; the describer here does not look."""
    return ArrayEvidence(
        name=SITE,
        identity="a" * 64,
        data_sha256="d" * 64,
        site="blocks.1.mlp",
        images=[ImageRecord("0.png", 16, 16, "", (), "")],
        grid=worlds.GRID,
        preprocessing=worlds.PREPROCESSING,
        thumbnails=[b""],
        embeddings=np.zeros((1, 2), dtype=np.float32),
        all_peaks=np.zeros((width, 1)),
        firing_images=np.full((width, 1), -1),
        maps=np.zeros((width, 1, 4)),
        thresholds=np.zeros(width),
    )


Serve = Callable[[LabelStore], Any]


@pytest.fixture
def serve(bundle: Bundle, gated: Gated, monkeypatch: pytest.MonkeyPatch) -> Serve:
    monkeypatch.setattr(app, "_LAME_DUCK_SECONDS", 0)

    def serve(labels: LabelStore) -> Any:
        labelling = Labelling({"gated": gated}, neurons={SITE: neurons()})
        return serving.serving(serving.state(bundle, labels, labelling))

    return serve


@pytest.fixture
def labels() -> LabelStore:
    return LabelStore("sqlite://")


@pytest.fixture
def service(serve: Serve, labels: LabelStore, gated: Gated) -> Iterator[Any]:
    with serve(labels) as channel:
        yield grpc_jobs.LabelJobServiceStub(channel)
        gated.open.set()


def features(**rest: Any) -> pb.LabelJob:
    return pb.LabelJob(features=pb.FeatureUnits(dictionary=DICTIONARY, **rest))


def create(service: Any, job: pb.LabelJob, **rest: Any) -> pb.LabelJob:
    return service.CreateLabelJob(pb.CreateLabelJobRequest(label_job=job, **rest)).label_job


def watch(service: Any, name: str, token: str = "", **rest: Any) -> list[pb.WatchLabelJobResponse]:
    request = pb.WatchLabelJobRequest(name=name, resume_token=token, **rest)
    return list(service.WatchLabelJob(request, timeout=20))


def get(service: Any, name: str) -> pb.LabelJob:
    return service.GetLabelJob(pb.GetLabelJobRequest(name=name)).label_job


def refused(call: Any) -> tuple[grpc.StatusCode, str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return refusal(caught.value)


def test_a_job_labels_what_fires_and_is_watched_to_its_end(
    service: Any, labels: LabelStore
) -> None:
    job = create(service, features(), label_job_id="zoo")
    assert (job.name, job.describer) == ("labelJobs/zoo", "gated")
    assert (job.progress.total, list(job.dictionaries)) == (3, [DICTIONARY])
    messages = watch(service, job.name)
    units = [m.unit for m in messages if m.WhichOneof("content") == "unit"]
    assert [unit.feature for unit in units] == [f"{DICTIONARY}/features/{i}" for i in (0, 1, 2)]
    assert [unit.description.text for unit in units] == ["unit 0", "", "unit 2"]
    assert [unit.description.abstained for unit in units] == [False, True, False]
    final = messages[-1].label_job
    assert final.state == pb.LABEL_JOB_STATE_SUCCEEDED
    assert (final.progress.done, final.progress.labelled, final.progress.abstained) == (3, 2, 1)
    assert final.create_time.seconds <= final.start_time.seconds <= final.end_time.seconds
    assert get(service, job.name) == final
    assert final.features.dictionary == DICTIONARY
    assert {i: e.description.text for i, e in labels.currents(DICTIONARY).items()} == {
        0: "unit 0",
        1: None,
        2: "unit 2",
    }


def test_watching_goes_on_from_any_token(service: Any) -> None:
    job = create(service, features())
    messages = watch(service, job.name)
    for seen, message in enumerate(messages[:-1], start=1):
        if message.WhichOneof("content") == "unit":
            rest = [m for m in watch(service, job.name, message.resume_token) if m.HasField("unit")]
            assert rest == [m for m in messages[seen:] if m.HasField("unit")]
    (last,) = watch(service, job.name, messages[-1].resume_token)
    assert last.label_job.state == pb.LABEL_JOB_STATE_SUCCEEDED


def test_progress_alone_can_be_watched(service: Any) -> None:
    job = create(service, features())
    messages = watch(service, job.name, progress_only=True)
    assert all(m.WhichOneof("content") == "label_job" for m in messages)
    assert messages[-1].label_job.progress.done == 3


@pytest.mark.parametrize("token", ["x", "-1", "99", "²"])
def test_a_foreign_token_is_refused(service: Any, token: str) -> None:
    job = create(service, features())
    assert refused(lambda: watch(service, job.name, token)) == (
        INVALID,
        "INVALID_INPUT",
        "resume_token",
    )


@pytest.mark.parametrize(
    ("asked", "indices"),
    [
        ({}, [0, 1, 2]),
        ({"filter": "image_count >= 2"}, [0, 1]),
        ({"filter": "index >= 30"}, [30, 31]),
        ({"indices": [9, 2]}, [9, 2]),
        ({"indices": [9, 2], "filter": "count > 0"}, [2]),
    ],
)
def test_units_are_chosen_by_filter_and_index(
    service: Any, gated: Gated, asked: dict[str, Any], indices: list[int]
) -> None:
    watch(service, create(service, features(**asked)).name)
    assert [unit for _, unit, _ in gated.calls] == indices


def test_what_is_described_is_left_alone_unless_forced(
    service: Any, gated: Gated, labels: LabelStore
) -> None:
    labels.add(DICTIONARY, [made(0, "cat", describer="gated")], identity="")
    labels.add(DICTIONARY, [made(1, "dog", describer="other")], identity="")
    labels.edit(Unit(DICTIONARY, 2), "fox")
    watch(service, create(service, features()).name)
    assert [unit for _, unit, _ in gated.calls] == [1]
    forced = features()
    forced.force = True
    watch(service, create(service, forced).name)
    assert [unit for _, unit, _ in gated.calls] == [1, 0, 1, 2]
    texts = {i: e.description.text for i, e in labels.currents(DICTIONARY).items()}
    assert texts == {0: "unit 0", 1: None, 2: "fox"}


def test_metrics_and_budget_reach_the_job(service: Any, gated: Gated) -> None:
    job = features()
    job.metrics.append(description_pb2.SCORE_METRIC_DETECTION_AUC)
    job.budget.max_units = 2
    job.budget.max_duration.seconds = 600
    ended = watch(service, create(service, job).name)[-1].label_job
    assert ended.state == pb.LABEL_JOB_STATE_EXHAUSTED
    assert ended.progress.done == 2
    assert list(ended.metrics) == [description_pb2.SCORE_METRIC_DETECTION_AUC]
    assert (ended.budget.max_units, ended.budget.max_duration.seconds) == (2, 600)
    assert {metrics for _, _, metrics in gated.calls} == {("detection_auc",)}


def test_a_failed_unit_is_reported_and_the_job_goes_on(service: Any, gated: Gated) -> None:
    gated.fail_at = 1
    messages = watch(service, create(service, features()).name)
    (error,) = [m.unit.error for m in messages if m.unit.HasField("error")]
    assert (error.code, error.reason) == (3, "INVALID_IMAGE")
    assert (error.message, error.field) == ("no such picture", "image")
    final = messages[-1].label_job
    assert (final.state, final.progress.failed) == (pb.LABEL_JOB_STATE_SUCCEEDED, 1)


def test_a_lost_gpu_ends_the_server_and_no_unit(
    service: Any, gated: Gated, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str] = []

    def end(error: Exception) -> None:
        ended.append(str(error))
        gated.fail_at = -1  # in the place of the next server

    monkeypatch.setattr(job_lane, "end_if_lost", end)
    gated.fail_at, gated.error = 1, torch.AcceleratorError("CUDA error: an illegal address")
    final = watch(service, create(service, features()).name)[-1].label_job
    assert ended == ["CUDA error: an illegal address"]
    assert (final.state, final.progress.failed) == (pb.LABEL_JOB_STATE_SUCCEEDED, 0)


def test_neurons_are_labelled_as_features_of_their_sites_dictionary(
    service: Any, labels: LabelStore
) -> None:
    asked = pb.LabelJob(neurons=pb.NeuronUnits(model="models/tiny", sites=["blocks.1.ml*"]))
    job = create(service, asked)
    assert list(job.dictionaries) == ["dictionaries/tiny.blocks.1.mlp"]
    units = [m.unit for m in watch(service, job.name) if m.HasField("unit")]
    assert [u.feature for u in units] == [f"{job.dictionaries[0]}/features/{i}" for i in range(4)]
    assert units[0].description.name == f"{units[0].feature}/description"
    assert sorted(labels.currents(SITE)) == [0, 1, 2, 3]


def test_a_cancelled_job_ends_and_keeps_its_labels(service: Any, gated: Gated) -> None:
    gated.hold_at = 2
    job = create(service, features())
    deadline = time.monotonic() + 10
    while get(service, job.name).state == pb.LABEL_JOB_STATE_QUEUED:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    request = pb.CancelLabelJobRequest(name=job.name)
    cancelled = service.CancelLabelJob(request).label_job
    assert cancelled.state == pb.LABEL_JOB_STATE_CANCELLED
    gated.open.set()
    assert watch(service, job.name)[-1].label_job.state == pb.LABEL_JOB_STATE_CANCELLED
    assert service.CancelLabelJob(request).label_job.end_time == cancelled.end_time


def test_the_same_request_makes_one_job(service: Any) -> None:
    request_id = str(uuid.uuid4())
    first = create(service, features(), request_id=request_id)
    assert create(service, features(), request_id=request_id).name == first.name
    other = refused(lambda: create(service, features(indices=[1]), request_id=request_id))
    assert other == (INVALID, "INVALID_INPUT", "request_id")
    found = refused(lambda: create(service, features(), label_job_id=first.name.split("/")[1]))
    assert found == (grpc.StatusCode.ALREADY_EXISTS, "ALREADY_EXISTS", "label_job_id")


def test_jobs_are_listed_newest_first_and_filtered(service: Any) -> None:
    for name in ("one", "two", "three"):
        watch(service, create(service, features(), label_job_id=name).name)

    def listed(**rest: Any) -> pb.ListLabelJobsResponse:
        return service.ListLabelJobs(pb.ListLabelJobsRequest(**rest))

    names = [job.name.split("/")[1] for job in listed().label_jobs]
    assert names == ["three", "two", "one"]
    assert len(listed(filter=f'state = succeeded AND dictionary = "{DICTIONARY}"').label_jobs) == 3
    assert not listed(filter="state = running").label_jobs
    first = listed(page_size=2)
    second = listed(page_size=2, page_token=first.next_page_token)
    assert [job.name for job in second.label_jobs] == ["labelJobs/one"]


@pytest.mark.parametrize(
    ("job", "code", "reason", "field"),
    [
        (features(filter="size > 1"), INVALID, "INVALID_INPUT", "filter"),
        (features(indices=[32]), grpc.StatusCode.NOT_FOUND, "FEATURE_NOT_FOUND", "feature"),
        (pb.LabelJob(features=pb.FeatureUnits(dictionary="dictionaries/other")),
         grpc.StatusCode.NOT_FOUND, "NOT_FOUND", "dictionary"),
        (pb.LabelJob(describer="oracle", features=features().features),
         grpc.StatusCode.NOT_FOUND, "NOT_FOUND", "describer"),
        (pb.LabelJob(metrics=[description_pb2.SCORE_METRIC_CAUSAL], features=features().features),
         grpc.StatusCode.FAILED_PRECONDITION, "NOT_CONFIGURED", "metrics"),
        (pb.LabelJob(neurons=pb.NeuronUnits(model="models/other", sites=["*"])),
         grpc.StatusCode.NOT_FOUND, "NOT_FOUND", "label_job.neurons.model"),
        (pb.LabelJob(neurons=pb.NeuronUnits(model="models/tiny", sites=["layer.*"])),
         INVALID, "INVALID_INPUT", "label_job.neurons.sites"),
        (pb.LabelJob(neurons=pb.NeuronUnits(model="models/tiny", sites=["blocks.0.mlp"])),
         grpc.StatusCode.FAILED_PRECONDITION, "NOT_CONFIGURED", "label_job.neurons.sites"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_before_it_is_queued(
    service: Any, job: pb.LabelJob, code: grpc.StatusCode, reason: str, field: str
) -> None:
    assert refused(lambda: create(service, job)) == (code, reason, field)
    assert not service.ListLabelJobs(pb.ListLabelJobsRequest()).label_jobs


def test_an_unknown_job_is_not_found(service: Any) -> None:
    for call in (
        lambda: get(service, "labelJobs/none"),
        lambda: service.CancelLabelJob(pb.CancelLabelJobRequest(name="labelJobs/none")),
        lambda: watch(service, "labelJobs/none"),
    ):
        assert refused(call)[:2] == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")
    assert refused(lambda: watch(service, "jobs/1"))[:2] == (INVALID, "INVALID_INPUT")


def test_a_stopped_server_leaves_a_job_that_the_next_one_finishes(
    serve: Serve, gated: Gated, tmp_path: Path
) -> None:
    gated.hold_at = 1
    with serve(LabelStore(tmp_path / "labels.sqlite")) as channel:
        service = grpc_jobs.LabelJobServiceStub(channel)
        job = create(service, features())
        stream = service.WatchLabelJob(pb.WatchLabelJobRequest(name=job.name))
        while not gated.calls:
            time.sleep(0.01)
        # The server waits for the unit in hand, so it must go on once the server is stopping.
        threading.Timer(0.3, gated.open.set).start()
    seen = []
    with pytest.raises(grpc.RpcError) as caught:
        seen += [message.resume_token for message in stream]
    assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    with serve(LabelStore(tmp_path / "labels.sqlite")) as channel:
        messages = watch(grpc_jobs.LabelJobServiceStub(channel), job.name)
    assert messages[-1].label_job.state == pb.LABEL_JOB_STATE_SUCCEEDED
    assert sorted(unit for _, unit, _ in gated.calls) == [0, 1, 2]


def test_a_job_of_evidence_that_is_no_more_has_failed(
    serve: Serve, labels: LabelStore, gated: Gated
) -> None:
    target = JobTarget("gated", {DICTIONARY: "0" * 64}, {"features": {"dictionary": DICTIONARY}})
    LabelJobs(labels).create([Unit(DICTIONARY, 0)], target, name="old")
    renewed = replace(target, config={"version": 0}, identities={SITE: neurons().identity})
    LabelJobs(labels).create([Unit(SITE, 0)], renewed, name="older")
    judged = replace(renewed, config={"clip": "demo:clip"})
    LabelJobs(labels).create([Unit(SITE, 0)], judged, name="oldest")
    set_ = replace(renewed, config={"identity": "as they were"})
    LabelJobs(labels).create([Unit(SITE, 0)], set_, name="set")
    with serve(labels) as channel:
        service = grpc_jobs.LabelJobServiceStub(channel)
        old, older, oldest, changed = (
            watch(service, f"labelJobs/{name}")[-1].label_job
            for name in ("old", "older", "oldest", "set")
        )
    assert (old.state, old.error.reason) == (pb.LABEL_JOB_STATE_FAILED, "ARTIFACT_MISMATCH")
    assert "was rebuilt" in old.error.message
    assert "was renewed" in older.error.message
    assert "settings, or the files they name, changed" in changed.error.message
    assert oldest.error.message == "labels were judged by demo:clip, here by nothing"
    assert not gated.calls


def test_jobs_of_others_are_shown_and_left_to_them(
    serve: Serve, labels: LabelStore, bundle: Bundle, gated: Gated
) -> None:
    identity = BundleEvidence(bundle).identity
    jobs = LabelJobs(labels)
    for name, target in {
        "no-client": JobTarget("gated", {DICTIONARY: identity}),
        "neurons": JobTarget("gated", {SITE: neurons().identity}),
        "describer": JobTarget("other", {DICTIONARY: identity}, {"features": {}}),
        "dictionary": JobTarget("gated", {"dictionaries/other": identity}, {"features": {}}),
    }.items():
        jobs.create([Unit(next(iter(target.identities)), 0)], target, name=name)
    with serve(labels) as channel:
        service = grpc_jobs.LabelJobServiceStub(channel)
        watch(service, create(service, features()).name)  # of the lane's own, and behind the others
        shown = {
            name: get(service, f"labelJobs/{name}")
            for name in ("no-client", "neurons", "describer", "dictionary")
        }
    assert {job.state for job in shown.values()} == {pb.LABEL_JOB_STATE_QUEUED}
    assert shown["no-client"].features.dictionary == DICTIONARY
    assert (shown["neurons"].neurons.model, list(shown["neurons"].neurons.sites)) == (
        "models/tiny",
        ["blocks.1.mlp"],
    )

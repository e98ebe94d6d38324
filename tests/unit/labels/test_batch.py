"""Labelling everything in one job that goes on where it stopped."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.descriptions.test_caption_pmi import CONFIG, bundle_of, world
from vision_sae.config import DescribeConfig
from vision_sae.descriptions.describe import describe_bundle
from vision_sae.descriptions.describers.caption_pmi import CaptionPmi
from vision_sae.descriptions.protocol import Description
from vision_sae.descriptions.toolbox import Toolbox
from vision_sae.errors import InvalidInputError, WorkersEndedError
from vision_sae.evidence.protocol import Evidence
from vision_sae.labels import batch
from vision_sae.labels.batch import EvidenceFolder, label_all
from vision_sae.labels.jobs.job import Budget, Job
from vision_sae.labels.jobs.queue import LabelJobs
from vision_sae.labels.store import LabelStore

PARENT = "dictionaries/bundle"


@pytest.fixture
def folder(tmp_path: Path) -> EvidenceFolder:
    """A bundle of six features, three of which have labels."""
    return EvidenceFolder("bundle", bundle_of(tmp_path, *world()).path)


def run(
    tmp_path: Path, folder: EvidenceFolder, config: DescribeConfig = CONFIG, **more: int
) -> Job:
    workers, units = more.get("workers", 1), more.get("units")
    url, probes = str(tmp_path / "labels.sqlite"), tmp_path / "probes"
    budget = Budget(units)
    return label_all(url, folder, config, probes, workers=workers, budget=budget, progress=False)


def stored(tmp_path: Path) -> dict[int, Description]:
    store = LabelStore(str(tmp_path / "labels.sqlite"))
    return {i: entry.description for i, entry in store.currents(PARENT).items()}


@pytest.mark.parametrize("workers", [1, 2])
def test_job_labels_every_unit_as_describe_does(
    workers: int, tmp_path: Path, folder: EvidenceFolder
) -> None:
    job = run(tmp_path, folder, workers=workers)
    assert (job.state, job.total, job.labelled, job.abstained) == ("succeeded", 6, 3, 3)
    described = describe_bundle(folder.path, CONFIG, progress=False).descriptions
    assert {i: d.text for i, d in stored(tmp_path).items()} == {
        i: row["text"] for i, row in described.items()
    }


def test_command_given_again_finds_its_finished_job(tmp_path: Path, folder: EvidenceFolder) -> None:
    first, again = run(tmp_path, folder), run(tmp_path, folder)
    assert again == first


def test_job_behind_one_that_ran_out_takes_the_units_that_are_left(
    tmp_path: Path, folder: EvidenceFolder
) -> None:
    first = run(tmp_path, folder, units=4)
    assert (first.state, first.done) == ("exhausted", 4)
    second = run(tmp_path, folder)
    assert (second.state, second.total) == ("succeeded", 2)
    assert sorted(stored(tmp_path)) == list(range(6))


def test_other_settings_are_another_job(tmp_path: Path, folder: EvidenceFolder) -> None:
    first = run(tmp_path, folder)
    strict = CONFIG.model_copy(
        update={"caption_pmi": CONFIG.of("caption-pmi").model_copy(update={"words": 1})}
    )
    second = run(tmp_path, folder, strict)
    assert second.name != first.name
    jobs = LabelJobs(LabelStore(str(tmp_path / "labels.sqlite")))
    assert [job.name for job in jobs.all()] == [second.name, first.name]


def test_words_that_changed_are_another_job(tmp_path: Path, folder: EvidenceFolder) -> None:
    contents = iter(["one", "one", "other"])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Toolbox, "contents", lambda *_: {"vocabulary": next(contents)})
        first, again, other = (run(tmp_path, folder).name for _ in range(3))
    assert first == again != other


def test_open_job_goes_on_within_the_budget_it_is_given_now(
    tmp_path: Path, folder: EvidenceFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_arguments: object) -> None:
        """A worker that is interrupted at once."""

    with monkeypatch.context() as patched:
        patched.setattr(batch, "run_worker", none)
        first = run(tmp_path, folder, units=2)
    assert first.open
    second = run(tmp_path, folder, units=5)
    assert (second.name, second.state, second.done) == (first.name, "exhausted", 5)


def test_evidence_that_changed_is_another_job(tmp_path: Path, folder: EvidenceFolder) -> None:
    first = run(tmp_path, folder)
    vectors, captions = world()
    vectors[:, :, 5] = np.eye(60, 4)
    (tmp_path / "other").mkdir()
    moved = bundle_of(tmp_path / "other", vectors, captions)
    assert run(tmp_path, EvidenceFolder("bundle", moved.path)).name != first.name


def test_units_that_failed_are_tried_again_by_the_next_command(
    tmp_path: Path, folder: EvidenceFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    working = CaptionPmi.describe

    def failing(self: CaptionPmi, evidence: Evidence, units: Iterable[int]) -> Any:
        chosen = list(units)
        if 2 in chosen:
            raise InvalidInputError("not now")
        return working(self, evidence, chosen)

    monkeypatch.setattr(CaptionPmi, "describe", failing)
    first = run(tmp_path, folder)
    assert (first.state, first.failed) == ("succeeded", 1)
    monkeypatch.setattr(CaptionPmi, "describe", working)
    second = run(tmp_path, folder)
    assert (second.total, second.failed, second.done) == (1, 0, 1)
    assert sorted(stored(tmp_path)) == list(range(6))
    assert run(tmp_path, folder) == second


def test_workers_that_all_died_are_an_error(
    tmp_path: Path, folder: EvidenceFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "_work", die)
    with pytest.raises(WorkersEndedError, match="2 of 2 workers ended .* exit codes 7, 7"):
        run(tmp_path, folder, workers=2)
    monkeypatch.undo()
    assert run(tmp_path, folder).state == "succeeded"


def die(*_arguments: object) -> None:
    sys.exit(7)

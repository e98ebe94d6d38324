"""SIGKILL in the middle of a label job: every unit is labelled once, and as it would have been."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.fault import labelling
from tests.worlds import databases
from tests.worlds.labels import IDENTITY, PARENT
from vision_sae.descriptions.protocol import Description
from vision_sae.labels import database
from vision_sae.labels.entries import Unit
from vision_sae.labels.jobs.job import JobTarget
from vision_sae.labels.jobs.queue import LabelJobs
from vision_sae.labels.jobs.worker import run_worker
from vision_sae.labels.store import LabelStore

pytestmark = pytest.mark.slow
UNITS = 120
KILLS = [
    ("describing", 7),
    ("claiming", 2),
    ("handing in", 3),
    ("storing", 2),
    ("halfway through storing", 4),
    ("counting", 3),
    ("committing", 4),
    ("committing", 9),
    ("claiming", 3),
    ("describing", 1),
]


def queued(labels: Path | str) -> LabelJobs:
    """A job of units that no worker has seen yet."""
    jobs = LabelJobs(LabelStore(labels))
    target = JobTarget("caption-pmi", {PARENT: IDENTITY})
    jobs.create([Unit(PARENT, i) for i in range(UNITS)], target, name="job")
    return jobs


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Description]:
    jobs = queued(tmp_path_factory.mktemp("labels") / "labels.sqlite")
    run_worker(jobs, "job", labelling.Describer().label)
    return result(jobs)


def result(jobs: LabelJobs) -> dict[int, Description]:
    return {i: entry.description for i, entry in jobs.store.currents(PARENT).items()}


def check_once_each(jobs: LabelJobs, undisturbed: dict[int, Description]) -> None:
    job = jobs.get("job")
    assert (job.state, job.done, job.failed) == ("succeeded", UNITS, 0)
    assert result(jobs) == undisturbed
    with jobs.store.database.reading() as connection:
        unit = database.descriptions.c.unit
        counts = connection.execute(sa.select(sa.func.count(unit)).group_by(unit)).scalars().all()
    assert counts == [1] * UNITS
    finished = jobs.finished("job")
    assert [done.sequence for done in finished] == list(range(1, UNITS + 1))
    assert {done.unit.index: done.entry for done in finished} == jobs.store.currents(PARENT)
    assert jobs.progress("job").workers == 0


@pytest.fixture(params=["sqlite", "postgresql"])
def labels(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return str(tmp_path / "labels.sqlite")
    return databases.emptied(request.getfixturevalue("postgresql"))


def test_ten_kills_label_every_unit_once_and_alike(
    labels: str, undisturbed: dict[int, Description]
) -> None:
    jobs = queued(labels)
    for place, number in KILLS:
        worker = labelling.start(labels, place, number)
        worker.join()
        assert worker.exitcode == -signal.SIGKILL, place
        assert jobs.get("job").state == "running"
    run_worker(jobs, "job", labelling.Describer().label, pace=labelling.PACE)
    check_once_each(jobs, undisturbed)


def test_ten_kills_at_any_instant_of_two_workers_at_once(
    tmp_path: Path, undisturbed: dict[int, Description]
) -> None:
    jobs, chance = queued(tmp_path / "labels.sqlite"), random.Random(0)
    workers = [labelling.start(tmp_path / "labels.sqlite") for _ in range(2)]
    killed = 0
    while killed < 10 and jobs.get("job").open:
        time.sleep(chance.uniform(0.01, 0.1))
        which = chance.randrange(2)
        workers[which].kill()
        workers[which].join()
        killed += workers[which].exitcode == -signal.SIGKILL
        workers[which] = labelling.start(tmp_path / "labels.sqlite")
    for worker in workers:
        worker.join()
    check_once_each(jobs, undisturbed)
    assert killed == 10


def test_two_workers_share_a_job(labels: str, undisturbed: dict[int, Description]) -> None:
    jobs = queued(labels)
    meeting = labelling.meeting(3)
    workers = [labelling.start(labels, meeting=meeting) for _ in range(2)]
    meeting.wait()  # each worker holds units of its own, and has described none yet
    assert jobs.progress("job").workers == 2
    meeting.wait()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    check_once_each(jobs, undisturbed)

"""Label jobs: each unit once, whoever works on it, within the budget, and watched in order."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from tests.worlds import databases
from tests.worlds.labels import IDENTITY, PARENT, Clock, made
from vision_sae.descriptions.protocol import Description
from vision_sae.errors import (
    AlreadyExistsError,
    InvalidInputError,
    NotFoundError,
    RemoteServerAwayError,
)
from vision_sae.labels.database import Database
from vision_sae.labels.entries import Unit
from vision_sae.labels.jobs.job import Budget, Failure, Job, JobTarget
from vision_sae.labels.jobs.queue import LabelJobs
from vision_sae.labels.jobs.worker import Pace, run_worker
from vision_sae.labels.store import LabelStore

OTHER = "dictionaries/b"
TARGET = JobTarget("caption-pmi", {PARENT: IDENTITY, OTHER: "f" * 64})
LEASE = 60.0
EAGER = Pace(chunk=4, hand_in_seconds=0, wait_seconds=0.01)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["memory", "file", "postgresql"])
def jobs(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[LabelJobs]:
    if request.param == "postgresql":
        where = databases.emptied(request.getfixturevalue("postgresql"))
    else:
        where = "sqlite://" if request.param == "memory" else str(tmp_path / "labels.sqlite")
    store = LabelStore(Database(where, clock=clock))
    yield LabelJobs(store)
    store.close()


def some_units(count: int, parent: str = PARENT) -> list[Unit]:
    return [Unit(parent, index) for index in range(count)]


def create(jobs: LabelJobs, count: int = 10, **rest: object) -> Job:
    return jobs.create(some_units(count), TARGET, name="job", **rest)  # type: ignore[arg-type]


def label(parent: str, indices: Sequence[int]) -> Iterator[Description]:
    """Every third unit is an abstention."""
    for index in indices:
        yield made(index, f"{parent} {index}" if index % 3 else None)


def claim(jobs: LabelJobs, count: int = 4, worker: str = "w") -> tuple[int, tuple[int, ...]]:
    chunk = jobs.claim("job", worker, count=count, seconds=LEASE)
    assert chunk is not None
    return chunk.lease, chunk.indices


def numbers(jobs: LabelJobs, after: int = 0) -> list[int]:
    return [done.unit.index for done in jobs.finished("job", after=after)]


def test_a_job_labels_every_unit(jobs: LabelJobs) -> None:
    units = [*some_units(5), *some_units(5, OTHER)]
    waiting = jobs.create(units, TARGET, name="job", creator="Ada")
    assert (waiting.state, waiting.total, waiting.done, waiting.started) == ("queued", 10, 0, None)
    ended = run_worker(jobs, "job", label, pace=EAGER)
    assert (ended.state, ended.creator, ended.target) == ("succeeded", "Ada", TARGET)
    assert (ended.labelled, ended.abstained, ended.failed) == (6, 4, 0)
    for parent, identity in TARGET.identities.items():
        entries = jobs.store.currents(parent)
        assert [entries[i].description for i in range(5)] == list(label(parent, range(5)))
        assert {entry.identity for entry in entries.values()} == {identity}


def test_units_are_finished_in_an_order_that_can_be_resumed(jobs: LabelJobs) -> None:
    create(jobs, 7)
    run_worker(jobs, "job", label, pace=EAGER)
    everything = jobs.finished("job")
    assert [done.sequence for done in everything] == [1, 2, 3, 4, 5, 6, 7]
    assert sorted(done.unit.index for done in everything) == list(range(7))
    assert jobs.finished("job", after=4) == everything[4:]
    assert jobs.finished("job", after=2, limit=3) == everything[2:5]
    assert jobs.finished("job", after=7) == []
    assert everything[1].entry == jobs.store.current(everything[1].unit)


def test_workers_never_hold_the_same_unit(jobs: LabelJobs) -> None:
    create(jobs, 10)
    held = [claim(jobs, worker=f"w{i}")[1] for i in range(3)]
    assert held == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9)]
    assert jobs.claim("job", "late", count=4, seconds=LEASE) is None
    assert jobs.get("job").state == "running"
    assert jobs.progress("job").workers == 3


def test_a_chunk_is_of_one_parent(jobs: LabelJobs) -> None:
    jobs.create([*some_units(2), *some_units(2, OTHER)], TARGET, name="job")
    chunks = [jobs.claim("job", "w", count=4, seconds=LEASE) for _ in range(2)]
    assert [(c.parent, c.indices) for c in chunks if c] == [(PARENT, (0, 1)), (OTHER, (0, 1))]


def test_an_expired_lease_is_taken_over_and_its_late_work_is_dropped(
    jobs: LabelJobs, clock: Clock
) -> None:
    create(jobs, 2)
    slow = jobs.claim("job", "slow", count=2, seconds=LEASE)
    clock.now += LEASE - 1
    assert jobs.claim("job", "other", count=2, seconds=LEASE) is None
    clock.now += 1
    quick = jobs.claim("job", "other", count=2, seconds=LEASE)
    assert slow
    assert quick
    assert quick.lease > slow.lease
    assert quick.indices == slow.indices == (0, 1)
    assert not jobs.renew("job", slow.lease, seconds=LEASE)
    late = {0: made(0, "late"), 1: made(1, "late")}
    assert not jobs.finish("job", slow, late, seconds=LEASE)
    assert jobs.store.currents(PARENT) == {}
    assert jobs.finish("job", quick, {0: made(0, "right")}, seconds=LEASE)
    assert not jobs.finish("job", slow, late, seconds=LEASE)
    assert not jobs.finish("job", quick, {1: made(1, "right")}, seconds=LEASE)  # and it has ended
    assert jobs.get("job").state == "succeeded"
    assert [e.description.text for e in jobs.store.currents(PARENT).values()] == ["right"] * 2


def test_a_renewed_lease_is_not_taken_over(jobs: LabelJobs, clock: Clock) -> None:
    create(jobs, 2)
    lease, _ = claim(jobs)
    for _ in range(3):
        clock.now += LEASE - 1
        assert jobs.renew("job", lease, seconds=LEASE)
    assert jobs.claim("job", "other", count=2, seconds=LEASE) is None


def test_a_released_chunk_is_free_at_once(jobs: LabelJobs) -> None:
    create(jobs, 4)
    chunk = jobs.claim("job", "w", count=4, seconds=LEASE)
    assert chunk
    jobs.finish("job", chunk, {2: made(2, "t")}, seconds=LEASE)
    jobs.release("job", chunk.lease)
    assert claim(jobs, worker="other")[1] == (0, 1, 3)


def test_a_unit_is_not_finished_twice_nor_from_outside_its_chunk(jobs: LabelJobs) -> None:
    create(jobs, 8)
    chunk = jobs.claim("job", "w", count=4, seconds=LEASE)
    assert chunk
    jobs.finish("job", chunk, {0: made(0, "t")}, seconds=LEASE)
    for index in (0, 7):
        with pytest.raises(InvalidInputError, match="not belong to the leased chunk"):
            jobs.finish("job", chunk, {index: made(index, "again")}, seconds=LEASE)
    assert numbers(jobs) == [0]
    assert jobs.store.history(Unit(PARENT, 0)) == []


def test_the_budget_of_units_is_kept_by_all_workers_together(jobs: LabelJobs) -> None:
    create(jobs, 10, budget=Budget(units=5))
    assert claim(jobs, worker="holds")[1] == (0, 1, 2, 3)
    assert claim(jobs, worker="gets the rest")[1] == (4,)
    assert jobs.claim("job", "late", count=4, seconds=LEASE) is None
    assert jobs.get("job").state == "running"


def test_a_job_that_used_its_units_up_is_exhausted(jobs: LabelJobs) -> None:
    create(jobs, 10, budget=Budget(units=5))
    ended = run_worker(jobs, "job", label, pace=EAGER)
    assert (ended.state, ended.done, ended.total) == ("exhausted", 5, 10)
    assert len(jobs.store.currents(PARENT)) == 5


def test_an_open_job_can_be_given_another_budget(jobs: LabelJobs) -> None:
    create(jobs, budget=Budget(units=3))
    claim(jobs, 2)
    given = jobs.allow("job", Budget(units=7, seconds=900))
    assert (given.open, given.budget) == (True, Budget(units=7, seconds=900))
    assert claim(jobs, 10)[1] == (2, 3, 4, 5, 6)  # seven in all
    jobs.cancel("job")
    assert jobs.allow("job", Budget()) == jobs.get("job")  # an ended job stays as it is
    assert jobs.get("job").budget == given.budget


def test_a_budget_that_suffices_is_no_hindrance(jobs: LabelJobs) -> None:
    create(jobs, 5, budget=Budget(units=5))
    assert run_worker(jobs, "job", label, pace=EAGER).state == "succeeded"


def test_the_budget_of_time_is_used_by_all_workers_together(jobs: LabelJobs, clock: Clock) -> None:
    create(jobs, 20, budget=Budget(seconds=50))
    first = jobs.claim("job", "a", count=4, seconds=LEASE)
    second = jobs.claim("job", "b", count=4, seconds=LEASE)
    assert first
    assert second
    clock.now += 20
    assert jobs.renew("job", first.lease, seconds=LEASE)
    assert jobs.finish("job", second, {4: made(4, "t")}, seconds=LEASE)
    assert jobs.get("job").used == pytest.approx(40)
    clock.now += 15
    assert not jobs.finish("job", first, {0: made(0, "t")}, seconds=LEASE)
    job = jobs.get("job")
    assert (job.state, job.used, job.done) == ("exhausted", pytest.approx(55), 2)
    assert jobs.claim("job", "b", count=4, seconds=LEASE) is None


def test_cancelling_stops_the_workers_and_keeps_what_is_stored(jobs: LabelJobs) -> None:
    create(jobs, 10)

    def cancelling(parent: str, indices: Sequence[int]) -> Iterator[Description]:
        for description in label(parent, indices):
            if description.feature == 6:
                assert jobs.cancel("job").state == "cancelled"
            yield description

    ended = run_worker(jobs, "job", cancelling, pace=EAGER)
    assert (ended.state, ended.done) == ("cancelled", 6)
    assert ended.ended is not None
    assert len(jobs.store.currents(PARENT)) == 6
    assert jobs.cancel("job") == ended  # an ended job stays as it is


def test_a_failing_unit_does_not_hold_up_the_others(jobs: LabelJobs) -> None:
    create(jobs, 6)

    def failing(parent: str, indices: Sequence[int]) -> Iterator[Description]:
        for description in label(parent, indices):
            if description.feature == 2:
                raise InvalidInputError("no such picture", field="image")
            if description.feature == 4:
                raise ZeroDivisionError("division by zero")
            yield description

    ended = run_worker(jobs, "job", failing, pace=EAGER)
    assert (ended.state, ended.done, ended.failed) == ("succeeded", 6, 2)
    failures = {done.unit.index: done.failure for done in jobs.finished("job") if done.failure}
    assert failures == {
        2: Failure("INVALID_INPUT", "no such picture", "image"),
        4: Failure("INTERNAL", "ZeroDivisionError: division by zero"),
    }
    assert sorted(jobs.store.currents(PARENT)) == [0, 1, 3, 5]


AWAY = RemoteServerAwayError("nobody there", field="describe.vlm.url")
LOST = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


@pytest.mark.parametrize("error", [AWAY, LOST])
def test_a_server_that_is_away_or_a_gpu_that_is_lost_fails_no_unit(
    jobs: LabelJobs, error: Exception
) -> None:
    create(jobs, 6)

    def half_way(parent: str, indices: Sequence[int]) -> Iterator[Description]:
        yield from label(parent, indices[:2])
        raise error

    with pytest.raises(type(error), match=str(error)):
        run_worker(jobs, "job", half_way, pace=EAGER)
    paused = jobs.get("job")
    assert (paused.open, paused.done, paused.failed) == (True, 2, 0)
    ended = run_worker(jobs, "job", label, pace=EAGER)  # its units are free at once
    assert (ended.state, ended.done, ended.failed) == ("succeeded", 6, 0)


def test_a_unit_that_the_describer_forgets_has_failed(jobs: LabelJobs) -> None:
    create(jobs, 3)
    ended = run_worker(
        jobs, "job", lambda _, indices: [made(i, "t") for i in indices if i != 1], pace=EAGER
    )
    assert (ended.labelled, ended.failed) == (2, 1)


def test_a_persons_text_survives_a_job(jobs: LabelJobs) -> None:
    create(jobs, 4)
    jobs.store.edit(Unit(PARENT, 1), "lynx")
    run_worker(jobs, "job", label, pace=EAGER)
    entry = jobs.store.current(Unit(PARENT, 1))
    assert entry is not None
    assert entry.description.text == "lynx"


def test_a_stopped_worker_hands_in_what_it_has_and_frees_the_rest(jobs: LabelJobs) -> None:
    create(jobs, 10)
    stop = threading.Event()

    def stopping(parent: str, indices: Sequence[int]) -> Iterator[Description]:
        for description in label(parent, indices):
            if description.feature == 5:
                stop.set()
            yield description

    left = run_worker(jobs, "job", stopping, pace=EAGER, stop=stop)
    assert (left.state, left.done) == ("running", 6)
    assert jobs.progress("job").workers == 0
    assert claim(jobs, count=10)[1] == (6, 7, 8, 9)


def test_slow_units_keep_their_lease(tmp_path: Path) -> None:
    """Real time: each unit takes three times as long as a lease lasts."""
    jobs = LabelJobs(LabelStore(tmp_path / "labels.sqlite"))
    create(jobs, 4)
    calls: list[int] = []

    def slow(parent: str, indices: Sequence[int]) -> Iterator[Description]:
        for description in label(parent, indices):
            calls.append(description.feature)
            time.sleep(0.6)
            yield description

    pace = Pace(chunk=2, lease_seconds=0.2, hand_in_seconds=10, wait_seconds=0.02)
    workers = [
        threading.Thread(target=run_worker, args=(jobs, "job", slow), kwargs={"pace": pace})
        for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(calls) == [0, 1, 2, 3]
    assert jobs.get("job").state == "succeeded"


def test_progress_says_rate_and_time_to_the_end(jobs: LabelJobs, clock: Clock) -> None:
    create(jobs, 100)
    assert jobs.progress("job") == (0.0, None, 0)
    chunk = jobs.claim("job", "w", count=100, seconds=1000)
    assert chunk
    for second in range(1, 81):  # 1 unit a second for 40 s, none for 20, then 2 for 20
        clock.now += 1
        count = 1 if second <= 40 else 2 if second > 60 else 0
        ready = {i: made(i, "t") for i in range(jobs.get("job").done, 100)[:count]}
        jobs.finish("job", chunk, ready, seconds=1000)
    # In the last 60 s: 20 of the first part, 40 of the last.
    rate, remaining, workers = jobs.progress("job")
    assert (rate, workers) == (pytest.approx(1.0), 1)
    assert remaining == pytest.approx(20.0)


def test_the_same_request_makes_one_job(jobs: LabelJobs) -> None:
    first = jobs.create(some_units(3), TARGET, request_id="r")
    assert jobs.create(some_units(5), TARGET, request_id="r") == first
    assert jobs.create(some_units(3), TARGET, request_id="s").name != first.name
    assert len(jobs.all()) == 2


def test_names_are_taken_once_and_lists_are_newest_first(jobs: LabelJobs) -> None:
    for name in ("one", "two", "three"):
        jobs.create(some_units(1), TARGET, name=name)
    assert [job.name for job in jobs.all()] == ["three", "two", "one"]
    with pytest.raises(AlreadyExistsError):
        jobs.create(some_units(1), TARGET, name="two")
    with pytest.raises(NotFoundError, match="no label job four"):
        jobs.get("four")


def test_a_job_of_nothing_has_succeeded(jobs: LabelJobs) -> None:
    job = create(jobs, 0)
    assert (job.state, job.total) == ("succeeded", 0)
    assert run_worker(jobs, "job", label) == job


def test_units_of_a_job_are_distinct_and_have_evidence(jobs: LabelJobs) -> None:
    with pytest.raises(InvalidInputError, match="named twice"):
        jobs.create([Unit(PARENT, 1), Unit(PARENT, 1)], TARGET)
    with pytest.raises(InvalidInputError, match="no evidence for dictionaries/c"):
        jobs.create([Unit("dictionaries/c", 1)], TARGET)


def test_a_job_that_cannot_go_on_says_why(jobs: LabelJobs) -> None:
    create(jobs)
    jobs.fail("job", Failure("ARTIFACT_MISMATCH", "built anew"))
    job = jobs.get("job")
    assert (job.state, job.error) == ("failed", Failure("ARTIFACT_MISMATCH", "built anew"))
    assert jobs.claim("job", "w", count=1, seconds=1) is None

"""One thread where steps are small or passes run side by side, and afterwards as many as before."""

from __future__ import annotations

import threading
import time

import faiss
import pytest
import torch

from vision_sae.config import DescribeConfig
from vision_sae.descriptions.toolbox import threads_for
from vision_sae.threads import map_in_threads, one_thread


@pytest.fixture
def two_threads() -> None:
    """A process that computes with two, whatever the machine has."""
    torch.set_num_threads(2)
    faiss.omp_set_num_threads(2)


def threads() -> tuple[int, int]:
    return torch.get_num_threads(), faiss.omp_get_max_threads()


@pytest.mark.usefixtures("two_threads")
def test_the_body_has_one_thread() -> None:
    with one_thread():
        assert threads() == (1, 1)
    assert threads() == (2, 2)


@pytest.mark.usefixtures("two_threads")
def test_an_error_in_the_body_gives_them_back_too() -> None:
    with pytest.raises(ValueError, match="no"), one_thread():
        raise ValueError("no")
    assert threads() == (2, 2)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(("describer", "count"), [("contrastive", 1), ("milan", 2)])
def test_describers_that_run_a_model_for_each_unit_keep_them(describer: str, count: int) -> None:
    with threads_for(DescribeConfig(describer=describer)):
        assert threads() == (count, count)


def test_results_come_in_the_order_of_the_items_though_later_ones_are_done_before() -> None:
    def work(item: int) -> int:
        time.sleep(0.02 if item % 2 == 0 else 0)
        return item * item

    assert list(map_in_threads(work, range(7), 3)) == [0, 1, 4, 9, 16, 25, 36]
    assert list(map_in_threads(work, [], 3)) == []


@pytest.mark.usefixtures("two_threads")
def test_workers_compute_at_the_same_time_with_one_thread_each() -> None:
    met = threading.Barrier(3, timeout=20)

    def work(_: int) -> int:
        met.wait()
        return torch.get_num_threads()

    assert list(map_in_threads(work, range(6), 3)) == [1] * 6
    assert torch.get_num_threads() == 2
    assert threads_to_come() == 2


def threads_to_come() -> int:
    """How many of torch's threads a new thread begins with."""
    counts: list[int] = []
    thread = threading.Thread(target=lambda: counts.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return counts[0]


def test_no_more_is_begun_than_there_are_workers_beyond_what_was_asked_for() -> None:
    begun: list[int] = []
    results = map_in_threads(begun.append, iter(range(100)), 2)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert begun in ([0, 1], [0, 1, 2])


@pytest.mark.usefixtures("two_threads")
def test_an_error_reaches_the_reader_and_ends_the_work() -> None:
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        if item == 1:
            raise ValueError("no")
        return item

    results = map_in_threads(work, range(100), 1)
    assert next(results) == 0
    with pytest.raises(ValueError, match="no"):
        next(results)
    assert len(begun) <= 3
    assert threads_to_come() == 2

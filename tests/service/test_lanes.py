"""Lanes: work off the event loop, and items that wait for one together."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from vision_sae_server.runtime.lanes import Batches, Lane, ModelLane


@pytest.fixture
async def lane() -> AsyncIterator[ModelLane]:
    made = ModelLane()
    yield made
    made.close()


ANSWERS = Lane("answers")


def batched(lane: ModelLane, work: Any, most: int) -> Batches[Any, Any, Any]:
    """Batches whose results are their answers."""
    return Batches({lane: work}, most, ANSWERS, lambda _, result: result)


class Squares:
    """Squares numbers, holds the lane until it is let go, and remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.free = threading.Event()

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.free.wait(10)
        self.batches.append(list(items))
        if 13 in items:
            raise ValueError("unlucky")
        return [item * item for item in items]


async def test_a_lone_item_does_not_wait_for_company(lane: ModelLane) -> None:
    squares = Squares()
    squares.free.set()
    batches = batched(lane, squares, most=4)
    assert await batches.run("a", 3) == 9
    assert squares.batches == [[3]]


async def test_items_that_wait_are_worked_on_together_by_kind(lane: ModelLane) -> None:
    squares = Squares()
    batches = batched(lane, squares, most=3)
    asked = [asyncio.ensure_future(batches.run("a" if n < 6 else "b", n)) for n in range(8)]
    await asyncio.sleep(0.05)  # the first of them holds the lane
    squares.free.set()
    assert await asyncio.gather(*asked) == [n * n for n in range(8)]
    first, *others = squares.batches
    assert first[0] == 0
    assert set(map(len, squares.batches)) <= {1, 2}  # sizes that are tried out at the start
    assert [6, 7] in others
    assert lane.waiting == 0


async def test_what_fails_fails_its_batch_alone(lane: ModelLane) -> None:
    squares = Squares()
    squares.free.set()
    batches = batched(lane, squares, most=1)
    found = await asyncio.gather(*(batches.run("a", n) for n in (2, 13, 4)), return_exceptions=True)
    assert (found[0], found[2]) == (4, 16)
    assert isinstance(found[1], ValueError)


async def test_an_answer_that_fails_fails_alone(lane: ModelLane) -> None:
    squares = Squares()

    def told(item: int, square: int) -> str:
        if item == 2:
            raise ValueError("unspeakable")
        return f"{item}: {square}"

    batches = Batches({lane: squares}, 4, ANSWERS, told)
    asked = [asyncio.ensure_future(batches.run("a", n)) for n in range(4)]
    squares.free.set()
    found = await asyncio.gather(*asked, return_exceptions=True)
    assert [found[n] for n in (0, 1, 3)] == ["0: 0", "1: 1", "3: 9"]
    assert isinstance(found[2], ValueError)


async def test_the_model_goes_on_while_answers_are_made(lane: ModelLane) -> None:
    squares, slow = Squares(), Squares()
    squares.free.set()
    batches = Batches({lane: squares}, 1, ANSWERS, lambda item, _: slow([item]))
    asked = [asyncio.ensure_future(batches.run("a", n)) for n in range(3)]
    await asyncio.sleep(0.05)
    assert squares.batches == [[0], [1], [2]]
    assert not any(run.done() for run in asked)
    slow.free.set()
    assert await asyncio.gather(*asked) == [[0], [1], [4]]


async def test_an_item_nobody_waits_for_is_dropped(lane: ModelLane) -> None:
    squares = Squares()
    batches = batched(lane, squares, most=1)
    first, dropped, last = (asyncio.ensure_future(batches.run("a", n)) for n in (1, 2, 3))
    await asyncio.sleep(0.05)
    dropped.cancel()
    await asyncio.sleep(0)
    squares.free.set()
    assert (await first, await last) == (1, 9)
    assert dropped.cancelled()
    assert [2] not in squares.batches


async def test_an_item_that_the_turn_of_another_does_is_not_kept_waiting(
    lane: ModelLane,
) -> None:
    squares, held = Squares(), Squares()

    def work(names: Sequence[str]) -> list[int]:
        return (held if "held" in names else squares)([len(name) for name in names])

    batches = batched(lane, work, most=2)
    asked = ["first", "one", "held", "two"]
    runs = [asyncio.ensure_future(batches.run(name == "held", name)) for name in asked]
    await asyncio.sleep(0)  # All four wait before the lane gets past the first.
    squares.free.set()
    first, one, _, two = runs
    assert await asyncio.wait_for(asyncio.gather(first, one, two), 5) == [25, 9, 9]
    held.free.set()
    assert await runs[2] == 16


async def test_a_lane_that_closes_ends_what_waits_for_it() -> None:
    lane, squares = ModelLane(), Squares()
    batches = batched(lane, squares, most=1)
    first, last = (asyncio.ensure_future(batches.run("a", n)) for n in (1, 2))
    closing = asyncio.ensure_future(asyncio.to_thread(lane.close))
    await asyncio.sleep(0.05)
    squares.free.set()
    await closing
    assert await first == 1
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(last, 5)


async def test_one_queue_feeds_the_lanes_of_replicas() -> None:
    lanes, held, free = (ModelLane(), ModelLane()), Squares(), Squares()
    free.free.set()
    batches = Batches(dict(zip(lanes, (held, free), strict=True)), 2, ANSWERS, lambda _, r: r)
    busy = lanes[0].submit(lambda: held.free.wait(10))
    asked = [batches.run("a", n) for n in range(5)]
    assert await asyncio.wait_for(asyncio.gather(*asked), 5) == [0, 1, 4, 9, 16]
    assert held.batches == []
    assert max(map(len, free.batches)) <= 2
    held.free.set()
    await busy
    assert [lane.waiting for lane in lanes] == [0, 0]
    for lane in lanes:
        lane.close()


async def test_replicas_share_what_waits() -> None:
    lanes, squares = (ModelLane(), ModelLane()), Squares()
    batches = Batches(dict.fromkeys(lanes, squares), 8, ANSWERS, lambda _, r: r)
    asked = [asyncio.ensure_future(batches.run("a", n)) for n in range(6)]
    await asyncio.sleep(0.05)  # a first batch holds each of the lanes
    squares.free.set()
    assert await asyncio.gather(*asked) == [n * n for n in range(6)]
    assert max(map(len, squares.batches)) <= 3
    for lane in lanes:
        lane.close()


async def test_threads_of_a_lane_share_what_waits() -> None:
    lane, squares = ModelLane(2), Squares()
    batches = batched(lane, squares, most=8)
    asked = [asyncio.ensure_future(batches.run("a", n)) for n in range(6)]
    await asyncio.sleep(0.05)
    squares.free.set()
    assert await asyncio.gather(*asked) == [n * n for n in range(6)]
    assert max(map(len, squares.batches)) <= 3
    lane.close()


async def test_a_pass_alone_has_all_cores_and_several_have_one_each(cores: int) -> None:
    lane, together = ModelLane(2), threading.Barrier(2)

    def seen(alone: bool) -> tuple[bool, int]:
        return alone, torch.get_num_threads()

    def several(alone: bool) -> tuple[bool, int]:
        together.wait(10)
        return seen(alone)

    assert await lane.share(seen) == (True, cores)
    free = threading.Event()
    held = lane.submit(lambda: free.wait(10))  # until both have come
    both = [lane.share(several), lane.share(several)]
    free.set()
    assert await asyncio.gather(held, *both) == [True, (False, 1), (False, 1)]
    assert await lane.share(seen) == (True, cores)
    lane.close()


async def test_other_models_have_all_cores_whatever_is_shared_beside_them(cores: int) -> None:
    lane, other, free = ModelLane(2), ModelLane(), threading.Event()
    held = lane.submit(lambda: free.wait(10))
    counted, more = threading.Barrier(3), threading.Event()

    def several(_alone: bool) -> bool:
        counted.wait(10)
        return more.wait(10)

    both = [lane.share(several), lane.share(several)]
    free.set()
    await asyncio.to_thread(counted.wait, 10)  # both compute with one core
    assert await other.run(torch.get_num_threads) == cores
    more.set()
    await asyncio.gather(held, *both)
    lane.close()
    other.close()


async def test_what_is_not_to_be_shared_has_all_cores_and_nobody_beside_it(cores: int) -> None:
    lane, running, most = ModelLane(2), set[int](), list[int]()

    def alone(number: int) -> int:
        running.add(number)
        time.sleep(0.01)
        most.append(len(running))
        running.discard(number)
        return torch.get_num_threads()

    def beside(number: int, _alone: bool) -> int:
        running.add(-1 - number)
        time.sleep(0.01)
        running.discard(-1 - number)
        return torch.get_num_threads()

    asked = [
        lane.share(partial(beside, n)) if n % 2 else lane.submit(partial(alone, n))
        for n in range(12)
    ]
    assert (await asyncio.gather(*asked))[::2] == [cores] * 6
    assert most == [1] * 6
    lane.close()


async def test_passes_one_after_another_have_all_cores(cores: int) -> None:
    lane = ModelLane()
    counted = [lane.share(lambda alone: (alone, torch.get_num_threads())) for _ in range(3)]
    assert await asyncio.gather(*counted) == [(False, cores)] * 3
    lane.close()

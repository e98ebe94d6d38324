"""Lanes: work off the event loop, and items that wait for one together."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence

import pytest
from vision_sae_server.lanes import Batches, Lane


@pytest.fixture
async def lane() -> AsyncIterator[Lane]:
    made = Lane("test")
    yield made
    made.close()


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


async def test_a_lone_item_does_not_wait_for_company(lane: Lane) -> None:
    squares = Squares()
    squares.free.set()
    batches: Batches[int, int] = Batches(lane, squares, most=4)
    assert await batches.run("a", 3) == 9
    assert squares.batches == [[3]]


async def test_items_that_wait_are_worked_on_together_by_kind(lane: Lane) -> None:
    squares = Squares()
    batches: Batches[int, int] = Batches(lane, squares, most=3)
    asked = [asyncio.ensure_future(batches.run("a" if n < 6 else "b", n)) for n in range(8)]
    await asyncio.sleep(0.05)  # the first of them holds the lane
    squares.free.set()
    assert await asyncio.gather(*asked) == [n * n for n in range(8)]
    first, *others = squares.batches
    assert first[0] == 0
    assert max(map(len, squares.batches)) <= 3
    assert [6, 7] in others
    assert lane.waiting == 0


async def test_what_fails_fails_its_batch_alone(lane: Lane) -> None:
    squares = Squares()
    squares.free.set()
    batches: Batches[int, int] = Batches(lane, squares, most=1)
    found = await asyncio.gather(*(batches.run("a", n) for n in (2, 13, 4)), return_exceptions=True)
    assert (found[0], found[2]) == (4, 16)
    assert isinstance(found[1], ValueError)


async def test_an_item_nobody_waits_for_is_dropped(lane: Lane) -> None:
    squares = Squares()
    batches: Batches[int, int] = Batches(lane, squares, most=1)
    first, dropped, last = (asyncio.ensure_future(batches.run("a", n)) for n in (1, 2, 3))
    await asyncio.sleep(0.05)
    dropped.cancel()
    await asyncio.sleep(0)
    squares.free.set()
    assert (await first, await last) == (1, 9)
    assert dropped.cancelled()
    assert [2] not in squares.batches

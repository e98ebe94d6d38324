"""A server on a GPU: one lane for it, batches that fit into its memory, and what its errors do.

The errors are those of torch, raised by work that stands for a model.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from vision_sae_server.runtime import devices
from vision_sae_server.runtime.errors import grpc_code
from vision_sae_server.runtime.lanes import Batches, Lane, ModelLane

from vision_sae.errors import OverloadedError
from vision_sae.exits import DEVICE_LOST


class SmallGpu:
    """Squares numbers on a GPU that has memory for a few at a time."""

    def __init__(self, room: int) -> None:
        self.room, self.batches = room, list[list[int]]()

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        if len(items) > self.room:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return [item * item for item in items]


async def together(work: SmallGpu, count: int) -> list[Any]:
    """The answers to numbers that wait for one lane together, behind other work."""
    lane, answers, free = ModelLane(), Lane("answers"), threading.Event()
    batches = Batches({lane: work}, 8, answers, lambda _, result: result)
    before = lane.submit(lambda: free.wait(10))
    asked = [asyncio.ensure_future(batches.run("a", number)) for number in range(count)]
    await asyncio.sleep(0.05)
    free.set()
    found = await asyncio.gather(*asked, return_exceptions=True)
    await before
    lane.close()
    answers.close()
    return found


async def test_a_batch_that_has_no_room_is_cut_in_half() -> None:
    work = SmallGpu(room=2)
    assert await together(work, 4) == [0, 1, 4, 9]
    assert work.batches == [[0, 1, 2, 3], [0, 1], [2, 3]]


async def test_halves_that_have_no_room_are_refused_and_the_lane_goes_on() -> None:
    work = SmallGpu(room=1)
    found = await together(work, 4)
    assert [type(each) for each in found] == [OverloadedError] * 4
    assert work.batches == [[0, 1, 2, 3], [0, 1]]  # cut once, not until it fits
    assert grpc_code(found[0].reason) == grpc_code("OVERLOADED")
    assert await together(work, 1) == [0]


async def test_a_call_without_room_is_refused() -> None:
    lane = ModelLane()

    def work() -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(OverloadedError, match="no memory left"):
        await lane.run(work)
    assert await lane.run(lambda: 3) == 3
    lane.close()


def test_other_errors_are_left_alone() -> None:
    def work() -> None:
        raise ValueError("unlucky")

    with pytest.raises(ValueError, match="unlucky"):
        devices.computed(work)


_LOSING = """
import asyncio, logging
import torch
from vision_sae_server.runtime.lanes import {lane}
logging.basicConfig()

def work(*_):
    raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

async def main():
    {call}

asyncio.run(main())
print("still there")
"""
_CALLS = {
    "work": ("ModelLane", "await ModelLane().run(work)"),
    "batch": (
        "Batches, Lane, ModelLane",
        "await Batches({ModelLane(): work}, 4, Lane('a'), lambda _, result: result).run('k', 1)",
    ),
    "search": ("Lane", "await Lane('search').run(work)"),
}


@pytest.mark.parametrize("kind", _CALLS)
def test_a_lost_gpu_ends_the_process_with_a_line_for_its_supervisor(kind: str) -> None:
    lane, call = _CALLS[kind]
    code = _LOSING.format(lane=lane, call=call)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.returncode == DEVICE_LOST
    assert "still there" not in ended.stdout
    (line,) = [line for line in ended.stderr.splitlines() if "CRITICAL" in line]
    assert "illegal memory access" in line
    assert "its supervisor starts another" in line


@pytest.mark.parametrize(
    ("one", "two", "free", "most", "expected"),
    [
        (300, 400, 10_000, 64, 64),  # 200 fixed, 100 each: 78 would fit
        (300, 400, 1_000, 64, 6),  # (800 - 200) / 100
        (300, 400, 100, 64, 1),  # never none
        (300, 300, 1_000, 8, 8),  # a second picture costs nothing
    ],
)
def test_a_batch_fits_into_free_memory(
    one: int, two: int, free: int, most: int, expected: int
) -> None:
    assert devices.largest_batch(one, two, free, most) == expected


def test_models_of_a_device_share_its_lane_and_models_on_the_cpu_do_not() -> None:
    lanes: dict[torch.device, ModelLane] = {}
    cpu, other = torch.device("cpu"), torch.device("meta")
    apart = [ModelLane.of(cpu, 3, lanes) for _ in range(2)]
    shared = [ModelLane.of(other, 3, lanes) for _ in range(2)]
    assert apart[0] is not apart[1]
    assert [lane.threads for lane in apart] == [3, 3]
    assert shared[0] is shared[1]
    assert shared[0].threads == 1  # one pass at a time
    for lane in (*apart, shared[0]):
        lane.close()

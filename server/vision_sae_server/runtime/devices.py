"""What can go wrong on a GPU while a server computes, and what follows.

A GPU without memory left refuses a piece of work and goes on. An error of the GPU itself, such as
an access to an illegal address, spoils the process's context: every later call would fail as well,
so the process ends, and its supervisor starts another.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from vision_sae.devices import is_lost
from vision_sae.errors import OverloadedError
from vision_sae.exits import DEVICE_LOST

Item = TypeVar("Item")
Result = TypeVar("Result")

_LOG = logging.getLogger("vision_sae_server")
_USABLE = 0.8
"""Share of a GPU's free memory that a batch may take; other lanes and fragments need the rest."""


def end_if_lost(error: BaseException) -> None:
    """End the process with the exit status `DEVICE_LOST` where an error `is_lost`.

    Nothing is drained: calls that compute would wait for the GPU for ever.
    """
    if not is_lost(error):
        return
    _LOG.critical(
        "the GPU failed (%s), and this process can compute on it no more: it ends with status %s, "
        "so that its supervisor starts another",
        str(error).partition("\n")[0],
        DEVICE_LOST,
    )
    logging.shutdown()
    os._exit(DEVICE_LOST)


def computed(work: Callable[[], Result]) -> Result:
    """The result of ``work`` on a device.

    Raises `OverloadedError` when the device has no memory left for it; ends the process where the
    device is lost.
    """
    try:
        return work()
    except torch.OutOfMemoryError as error:
        spent = _no_memory(error)
    except torch.AcceleratorError as error:
        end_if_lost(error)
        spent = _no_memory(error)
    # Not inside `except`: the error's traceback would keep the tensors of the work alive.
    free_memory()
    raise spent


def computed_in_halves(
    work: Callable[[Sequence[Item]], Sequence[Result]], items: Sequence[Item]
) -> Sequence[Result]:
    """``work(items)``; where the device has no memory left for all of them, its two halves."""
    try:
        return work(items)
    except torch.OutOfMemoryError:
        if len(items) == 1:
            raise
    free_memory()
    half = len(items) // 2
    _LOG.warning("no memory on the GPU for %s pictures at once; taking %s", len(items), half)
    return [*work(items[:half]), *work(items[half:])]


def free_memory() -> None:
    """Give the memory that torch keeps for later back to the GPU, where other work may need it."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _no_memory(error: BaseException) -> OverloadedError:
    _LOG.warning("no memory on the GPU: %s", str(error).partition("\n")[0])
    return OverloadedError(
        "the server's GPU has no memory left for this call; try again in a second, or with fewer "
        "or smaller pictures"
    )


def largest_batch(one: int, two: int, free: int, most: int) -> int:
    """How many pictures fit into a batch, at least 1 and at most ``most``.

    ``one`` and ``two`` are the bytes at the peak of a batch of one and of two pictures, ``free``
    the free bytes of the device.
    """
    each = max(two - one, 1)
    return max(1, min(most, int((free * _USABLE - (one - each)) // each)))


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """The bytes of a GPU's memory that ``work`` takes at its peak. (Not yet run on a GPU: see
    `make test-gpu`.)"""
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    work()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before

"""What a device can do at most, measured: the rate of matrix products and that of memory.

Not yet run on a GPU; ``python -m tests.benchmarks.devices`` measures it on one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from tests.benchmarks._device import wait
from vision_sae.models.precision import fastest_dtype

_CALLS = 30
_NUMBERS = 2**26
_STEP_ROWS = 4096
"""Rows of the batch of `Roofline.step_seconds`."""


class Roofline(NamedTuple):
    """The measured limits of a device."""

    flops: float
    """Operations a second of a large matrix product in the fastest precision."""
    bandwidth: float
    """Bytes a second that a copy reads and writes."""

    def step_seconds(self, dim: int, width: int) -> float:
        """The least seconds of a training step of a TopK autoencoder on 4,096 rows.

        The product that chooses the features runs at the rate of matrix products. Adam reads and
        writes encoder, decoder and two moments of each, and writes a copy of the encoder in half
        precision: 50 bytes a weight.
        """
        product = 2 * _STEP_ROWS * width * dim / self.flops
        return product + 50 * width * dim / self.bandwidth


def roofline(device: str) -> Roofline:
    """The limits of a device, by products and copies of its usual sizes."""
    return Roofline(gemm_flops(device), bandwidth(device))


def gemm_flops(device: str, shape: tuple[int, int, int] | None = None) -> float:
    """The device's matrix product in its fastest precision, FLOP/s: the best of many.

    ``shape`` is (rows, inner, columns).
    """
    usual = (1024, 384, 6144) if device == "cpu" else (8192, 8192, 8192)
    rows, inner, columns = shape or usual
    dtype = fastest_dtype(device)
    a, b = (torch.randn(s, device=device).to(dtype) for s in ((rows, inner), (inner, columns)))
    out = torch.empty(rows, columns, dtype=dtype, device=device)
    return 2 * rows * inner * columns / fewest_seconds(lambda: torch.mm(a, b, out=out), device)


def bandwidth(device: str, numbers: int = _NUMBERS) -> float:
    """Bytes a second that a copy of float32 numbers (256 MB) reads and writes: the best of many."""
    source = torch.zeros(numbers, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / fewest_seconds(lambda: target.copy_(source), device)


def fewest_seconds(work: Callable[[], Any], device: str) -> float:
    """The fewest seconds of thirty calls."""
    best = float("inf")
    for _ in range(_CALLS):
        wait(device)
        begin = time.perf_counter()
        work()
        wait(device)
        best = min(best, time.perf_counter() - begin)
    return best

"""What a precision loses, and which is fastest on this machine, found by measuring."""

from __future__ import annotations

import time
from functools import cache

import torch
from torch import Tensor

MOST_LOST = 1e-2
"""The largest relative error of what is stored in half precision. Rounding to nearest costs 5e-4 in
float16 and 4e-3 in bfloat16 at most; more means numbers so small that float16 has lost digits of
them, or all."""
_PROBE_SHAPE = (256, 384, 384)
"""Small on purpose: CPUs without bfloat16 units emulate it hundreds of times slower."""
_WORTHWHILE = 1.3
"""How much faster bfloat16 must be before its rounding is worth taking."""


def share_lost(exact: Tensor, stored: Tensor) -> float:
    """``|stored - exact| / |exact|`` over all numbers of a tensor; 0 where all are 0."""
    numbers = exact.double()
    norm = float(numbers.norm())
    return float((stored.double() - numbers).norm()) / norm if norm else 0.0


def _seconds(dtype: torch.dtype) -> float:
    """Best of three matrix products of the probe's shape."""
    rows, inner, cols = _PROBE_SHAPE
    a, b = torch.ones(rows, inner, dtype=dtype), torch.ones(inner, cols, dtype=dtype)
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - start)
    return best


@cache
def fastest_dtype(device: str = "cpu") -> torch.dtype:
    """``bfloat16`` where matrix products in it are clearly faster than in float32, else float32.

    CUDA devices that support bfloat16 use it without a measurement (not yet run on a GPU).
    """
    if device.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if _seconds(torch.float32) > _WORTHWHILE * _seconds(torch.bfloat16):
        return torch.bfloat16
    return torch.float32

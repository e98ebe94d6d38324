"""How much a numeric precision loses, and which precision is fastest on this machine."""

from __future__ import annotations

import time
from functools import cache, partial
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from vision_sae.devices import Dtype, requested_dtype
from vision_sae.errors import InvalidInputError
from vision_sae.machine import fastest
from vision_sae.transfers import finest_float

MOST_LOST = 1e-2
"""The largest relative error of what is stored in half precision. Rounding to nearest costs 5e-4 in
float16 and 4e-3 in bfloat16 at most; more means numbers so small that float16 has lost digits of
them, or all."""
_PROBE_SHAPE = (256, 384, 384)
"""Small on purpose: CPUs without bfloat16 units emulate it hundreds of times slower."""
_WORTHWHILE = 1.3
"""How much faster bfloat16 must be before its rounding is worth taking."""


def share_lost(exact: Float[Tensor, "*any"], stored: Float[Tensor, "*any"]) -> float:
    """`lost_share` as a number."""
    return float(lost_share(exact, stored))


def lost_share(exact: Float[Tensor, "*any"], stored: Float[Tensor, "*any"]) -> Float[Tensor, ""]:
    """``|stored - exact| / |exact|`` over all numbers of a tensor, on its device; 0 where all are
    0."""
    wide = finest_float(exact.device)
    numbers = exact.to(wide)
    norm = numbers.norm()
    share = (stored.to(wide) - numbers).norm() / norm
    return torch.where(norm == 0, torch.zeros_like(norm), share)


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


def computing_dtype(dtype: Dtype, device: str | torch.device) -> torch.dtype:
    """The precision of matrix products on a device: ``dtype``, or for "auto" the setting of the
    process, or else the fastest.

    Raises `InvalidInputError` for float16 on a CPU: most CPUs emulate float16, many times slower
    than float32, and bfloat16 takes no more memory.
    """
    wanted, kind = requested_dtype(dtype), torch.device(device).type
    if wanted == "auto":
        return fastest_dtype(str(device))
    if wanted == "float16" and kind == "cpu":
        raise InvalidInputError(
            "a CPU does not compute in float16; choose bfloat16, float32 or auto, or a GPU",
            field="dtype",
        )
    return cast(torch.dtype, getattr(torch, wanted))


def training_dtype(device: str | torch.device) -> torch.dtype:
    """The precision of the products of training on a device; the weights are float32.

    Raises `InvalidInputError` for float16, in which small gradients are rounded to zero.
    """
    if requested_dtype() == "float16":
        raise InvalidInputError(
            "training in float16 would lose small gradients; choose bfloat16, float32 or auto",
            field="dtype",
        )
    return computing_dtype("auto", device)


@cache
def fastest_dtype(device: str) -> torch.dtype:
    """``bfloat16`` where matrix products in it are clearly faster than in float32, else float32.

    A CPU is measured once; see `machine.fastest`. GPUs that support bfloat16 use it without a
    measurement (not yet run on a GPU).
    """
    if device.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if device != "cpu":
        return torch.float32
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    ways = {name: partial(_seconds, dtype) for name, dtype in dtypes.items()}
    return dtypes[fastest("matrix products", ways, usual="float32", gain=_WORTHWHILE)]

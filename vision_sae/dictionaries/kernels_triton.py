"""The loops of a k-sparse autoencoder on a CUDA GPU, in Triton (not yet run on a GPU).

`pytest tests/gpu` runs them there; the tests without a GPU run them in Triton's interpreter.

Shapes: N rows, D dimensions, F features, K slots per row (row n uses the first ``counts[n]``),
G nested prefixes of the dictionary (1 but for Matryoshka). One program computes one row, or a few
features. Every sum has a fixed order, so equal inputs give equal bits: processes that train
together stay together without sending weights.

What bounds each kernel on an H200 (4.8 TB/s, 0.99 PFLOP/s in bfloat16, 50 MB of second-level
cache), for D = 1024, F = 65,536, N = 4096, K = 32:

- `choose_largest` follows a product of 2 N F D = 0.55 TFLOP, 0.56 ms at the peak. The product runs
  in chunks of rows whose pre-activations stay in the second-level cache, so they never travel to
  memory and back, which would take 4 N F bytes, 0.22 ms. The kernel reads a row once from that
  cache, and two or more times from the first-level cache, where a row of 128 kB fits.
- `dots` and `bag` each gather N K D float32 numbers, 0.54 GB: 0.11 ms.
- `kernels_triton_update` reads and writes two matrices with two moments each, and the encoder's
  copy: 50 F D bytes, 3.4 GB, 0.70 ms. The gradients stay in registers between their sum and Adam's
  step; written to memory they would add 16 F D bytes. All rows take the step, because the moments
  of a row decay whether its feature fires or not, as on a CPU. The two gathers of a step read
  2 N D numbers, 34 MB, which stay in the second-level cache.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_DIGIT = 256
"""Values of a digit in `choose_largest`: eight bits."""
_BLOCK = 2048
"""Pre-activations that a program of `choose_largest` reads at a time."""
_TILE = 4096
"""Numbers of a tile of gathered rows: 32 registers a thread."""
_INTEGER = {2: torch.int16, 4: torch.int32}


def current_device(tensor: Tensor) -> AbstractContextManager[Any]:
    """Make the tensor's GPU the current one: Triton launches on that."""
    manager: AbstractContextManager[Any] = torch.cuda.device_of(tensor)
    return manager


@triton.jit
def _choose(
    bits: Any,
    features: Any,
    counts: Any,
    kept: Any,
    width: Any,
    k: Any,
    LEVELS: tl.constexpr,
    DIGIT: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One row of `choose_largest`: find the k-th largest digit by digit, then write in order."""
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, BLOCK)
    digits = tl.arange(0, DIGIT)
    bound = 0  # the leading digits of the k-th largest; 0 with fewer than k positive numbers
    wanted = k  # how many of the numbers with these leading digits are among the k largest
    for level in tl.static_range(LEVELS):
        shift: tl.constexpr = 8 * (LEVELS - 1 - level)
        histogram = tl.zeros((DIGIT,), dtype=tl.int32)
        for start in range(0, width, BLOCK):
            columns = start + lanes
            key = tl.load(bits + row * width + columns, mask=columns < width, other=0).to(tl.int32)
            # The leading digits of the first level are none: shift them out by two steps of at
            # most 31 bits.
            leading = (key >> shift) >> 8
            alike = (key > 0) & (leading == bound)
            histogram += tl.histogram((key >> shift) & (DIGIT - 1), DIGIT, mask=alike)
        above = tl.sum(histogram, 0) - tl.cumsum(histogram, 0)
        hit = (above < wanted) & (above + histogram >= wanted)
        bound = bound * DIGIT + tl.sum(tl.where(hit, digits, 0), 0)
        wanted = wanted - tl.sum(tl.where(hit, above, 0), 0)
    count = 0
    ties = wanted
    for start in range(0, width, BLOCK):
        columns = start + lanes
        key = tl.load(bits + row * width + columns, mask=columns < width, other=0)
        number = key.to(tl.int32)
        equal = ((number == bound) & (number > 0)).to(tl.int32)
        taken = (number > bound) | ((equal > 0) & (tl.cumsum(equal, 0) <= ties))
        chosen = taken.to(tl.int32)
        place = row * k + count + tl.cumsum(chosen, 0) - 1
        tl.store(features + place, columns, mask=taken)
        tl.store(kept + place, key, mask=taken)
        ties = tl.maximum(ties - tl.sum(equal, 0), 0)
        count += tl.sum(chosen, 0)
    tl.store(counts + row, count)


def choose_largest(pre_activations: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The features of the k largest positive pre-activations (N, F) of each row, ascending.

    Returns (features (N, k) int32, their pre-activations (N, k), counts (N) int32); unused slots
    hold 0. Of equal values, those of lower feature numbers are chosen. Positive floating-point
    numbers keep their order as integers, so the k-th largest is found by a radix search: one
    histogram for each digit of eight bits, two in bfloat16 and four in float32.
    """
    (rows, width), device = pre_activations.shape, pre_activations.device
    features = torch.zeros(rows, k, dtype=torch.int32, device=device)
    kept = torch.zeros(rows, k, dtype=pre_activations.dtype, device=device)
    counts = torch.zeros(rows, dtype=torch.int32, device=device)
    size = pre_activations.element_size()
    bits, low = (t.view(_INTEGER[size]) for t in (pre_activations.contiguous(), kept))
    if rows:
        with current_device(bits):
            block = min(_BLOCK, triton.next_power_of_2(width))
            _choose[(rows,)](
                bits, features, counts, low, width, k, LEVELS=size, DIGIT=_DIGIT, BLOCK=block
            )
    return features, kept, counts


@triton.jit
def _dots(
    features: Any,
    counts: Any,
    active: Any,
    a: Any,
    rows: Any,
    bias: Any,
    out: Any,
    slots: Any,
    dim: Any,
    first: Any,
    last: Any,
    MASKED: tl.constexpr,
    ACTIVATE: tl.constexpr,
    SLOTS: tl.constexpr,
    DIMS: tl.constexpr,
) -> None:
    """One row of `dots`: a tile of SLOTS slots and DIMS dimensions at a time."""
    n = tl.program_id(0).to(tl.int64)
    count = tl.load(counts + n)
    for start in range(0, count, SLOTS):
        places = start + tl.arange(0, SLOTS)
        at = n * slots + places
        used = places < count
        f = tl.load(features + at, mask=used, other=0)
        used = used & (f >= first) & (f < last)
        if MASKED:
            used = used & (tl.load(active + at, mask=used, other=0.0) > 0)
        total = tl.zeros((SLOTS,), dtype=tl.float32)
        for begin in range(0, dim, DIMS):
            d = begin + tl.arange(0, DIMS)
            inside = d < dim
            x = tl.load(a + n * dim + d, mask=inside, other=0.0).to(tl.float32)
            where = f[:, None].to(tl.int64) * dim + d[None, :]
            row = tl.load(rows + where, mask=used[:, None] & inside[None, :], other=0.0)
            total += tl.sum(row.to(tl.float32) * x[None, :], 1)
        if ACTIVATE:
            total = tl.maximum(total + tl.load(bias + f, mask=used, other=0.0), 0.0)
        tl.store(out + at, total, mask=used)


def dots(
    features: Tensor,
    counts: Tensor,
    a: Tensor,
    rows: Tensor,
    out: Tensor,
    *,
    between: tuple[int, int],
    active: Tensor | None = None,
    bias: Tensor | None = None,
) -> None:
    """Write ``out[n, j] = a[n] . rows[f]`` for the features f = ``features[n, j]`` in use.

    Only features from ``between[0]`` to ``between[1] - 1`` are written, and with ``active`` (N, K)
    only the slots where that is positive. With ``bias`` (F), ``out`` becomes ``relu(out +
    bias[f])``. ``a`` (N, D) and ``rows`` (F, D) may be of any floating-point type; the sums are in
    float32.
    """
    (n, slots), dim = features.shape, a.shape[1]
    if n == 0:
        return
    dims = min(128, triton.next_power_of_2(dim))
    with current_device(out):
        _dots[(n,)](
            features, counts, features if active is None else active, a.contiguous(), rows,
            rows if bias is None else bias, out, slots, dim, *between,
            MASKED=active is not None, ACTIVATE=bias is not None,
            SLOTS=min(_TILE // dims, triton.next_power_of_2(slots)), DIMS=dims,
        )  # fmt: skip


@triton.jit
def _bag(
    features: Any,
    counts: Any,
    values: Any,
    rows: Any,
    out: Any,
    slots: Any,
    dim: Any,
    first: Any,
    last: Any,
    SLOTS: tl.constexpr,
    DIMS: tl.constexpr,
) -> None:
    """DIMS dimensions of one row of `bag`."""
    n = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * DIMS + tl.arange(0, DIMS)
    inside = d < dim
    count = tl.load(counts + n)
    total = tl.zeros((DIMS,), dtype=tl.float32)
    for start in range(0, count, SLOTS):
        places = start + tl.arange(0, SLOTS)
        used = places < count
        f = tl.load(features + n * slots + places, mask=used, other=0)
        used = used & (f >= first) & (f < last)
        value = tl.load(values + n * slots + places, mask=used, other=0.0).to(tl.float32)
        where = f[:, None].to(tl.int64) * dim + d[None, :]
        row = tl.load(rows + where, mask=used[:, None] & inside[None, :], other=0.0)
        total += tl.sum(row.to(tl.float32) * value[:, None], 0)
    tl.store(out + n * dim + d, total, mask=inside)


def bag(
    features: Tensor, counts: Tensor, values: Tensor, rows: Tensor, *, between: tuple[int, int]
) -> Tensor:
    """The decoder: ``out[n] = sum_j values[n, j] * rows[f]``, float32 (N, D).

    The sum runs over the features f = ``features[n, j]`` in use from ``between[0]`` to
    ``between[1] - 1``.
    """
    (n, slots), dim = features.shape, rows.shape[1]
    out = torch.empty(n, dim, dtype=torch.float32, device=rows.device)
    if n == 0:
        return out
    dims = min(512, triton.next_power_of_2(dim))
    with current_device(out):
        _bag[(n, triton.cdiv(dim, dims))](
            features, counts, values, rows, out, slots, dim, *between,
            SLOTS=min(_TILE // dims, triton.next_power_of_2(slots)), DIMS=dims,
        )  # fmt: skip
    return out

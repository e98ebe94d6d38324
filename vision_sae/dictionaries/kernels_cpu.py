"""The loops of a k-sparse autoencoder on a CPU, compiled by Numba.

Every function works on a range of rows or features, alone and without the interpreter's lock, so
that one Python thread a core can run the whole step (see `Lanes`). Nothing of shape (N, k, D) and
no gradient of shape (F, D) is ever written: a feature's gradient lives in the first-level cache
between its sum and Adam's update of its row.

Shapes: N rows, D dimensions, F features, K slots a row of which the first ``counts[n]`` are taken,
G nested prefixes of the dictionary (1 but for Matryoshka).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from vision_sae.compiled import compiled
from vision_sae.threads import compute_with

T = TypeVar("T")
_BLOCK = 64
"""Pre-activations that are compared with a bound together."""
_STRIPE = 32
"""Pre-activations of which only the largest is looked at first."""


@intrinsic
def _bits_of(_typing: Any, _value: Any) -> Any:
    """The bit pattern of a float32."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.uint32(types.float32), generate


@compiled
def _kth_largest(values: NDArray[Any], count: int, k: int) -> Any:
    """The k-th largest of ``values[:count]``, whose order is lost (Hoare's selection)."""
    low, high, wanted = 0, count - 1, k - 1
    while low < high:
        pivot = values[(low + high) >> 1]
        i, j = low, high
        while i <= j:
            while values[i] > pivot:
                i += 1
            while values[j] < pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if wanted <= j:
            high = j
        elif wanted >= i:
            low = i
        else:
            break
    return values[wanted]


@compiled
def choose_largest(
    bits: NDArray[Any], k: int, features: NDArray[np.int32], counts: NDArray[np.int32]
) -> None:
    """The k largest positive pre-activations of each row, as feature numbers in ascending order.

    ``bits`` (N, F) are floating-point numbers seen as signed integers of their size: positive
    floats keep their order as integers, and negative ones stay negative. Writes ``features``
    (N, >= k) and ``counts`` (N). Equal values go to the lower feature numbers.

    A row is cut into stripes, each every ``len(maxima)``-th value. The k-th largest maximum of the
    stripes is at most the k-th largest value, so only what reaches it is looked at further.
    """
    rows, width = bits.shape
    stripes = max(1, min(width, max(width // _STRIPE, 4 * k)))
    maxima = np.empty(stripes, dtype=bits.dtype)
    scratch = np.empty(width, dtype=bits.dtype)
    found = np.empty(width + 1, dtype=np.int32)
    one, none = bits.dtype.type(1), bits.dtype.type(0)  # one type throughout: it vectorises
    for n in range(rows):
        row = bits[n]
        for i in range(stripes):
            maxima[i] = row[i]
        for start in range(stripes, width, stripes):
            stripe = row[start : start + stripes]
            for i in range(len(stripe)):
                value, largest = stripe[i], maxima[i]
                maxima[i] = value if value > largest else largest
        bound = one
        if stripes >= k:
            least = _kth_largest(maxima, stripes, k)
            if least > bound:
                bound = least
        count = 0
        for start in range(0, width, _BLOCK):
            block = row[start : start + _BLOCK]
            hit = none
            for i in range(len(block)):
                hit |= one if block[i] >= bound else none
            if hit:
                for i in range(len(block)):  # without a branch: most guesses would be wrong
                    found[count] = start + i
                    count += block[i] >= bound
        if count <= k:
            features[n, :count] = found[:count]
            counts[n] = count
            continue
        for i in range(count):
            scratch[i] = row[found[i]]
        last = _kth_largest(scratch, count, k)
        ties = k
        for i in range(count):
            if row[found[i]] > last:
                ties -= 1
        kept = 0
        for i in range(count):
            value = row[found[i]]
            if value > last or (value == last and ties > 0):
                if value == last:
                    ties -= 1
                features[n, kept] = found[i]
                kept += 1
        counts[n] = kept


@compiled
def take(
    bits: NDArray[Any],
    features: NDArray[np.int32],
    counts: NDArray[np.int32],
    out: NDArray[np.int32],
) -> None:
    """``out[n, j] = bits[n, features[n, j]]`` of the slots taken."""
    for n in range(len(counts)):
        for slot in range(counts[n]):
            out[n, slot] = bits[n, features[n, slot]]


@compiled
def keep_above(
    kept: NDArray[np.int32], bound: int, features: NDArray[np.int32], counts: NDArray[np.int32]
) -> None:
    """Drop, in place, the chosen features whose bits (N, K) are below ``bound``."""
    for n in range(len(counts)):
        count = 0
        for slot in range(counts[n]):
            if kept[n, slot] >= bound:
                features[n, count] = features[n, slot]
                count += 1
        counts[n] = count


@compiled
def dot_rows(
    features: NDArray[np.int32],
    counts: NDArray[np.int32],
    a: NDArray[np.float32],
    rows: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """``out[n, j] = a[n] . rows[features[n, j]]``; slots not taken become 0."""
    for n in range(len(counts)):
        for slot in range(out.shape[1]):
            total = np.float32(0)
            if slot < counts[n]:
                row = rows[features[n, slot]]
                for d in range(a.shape[1]):
                    total += a[n, d] * row[d]
            out[n, slot] = total


@compiled
def activate(
    features: NDArray[np.int32],
    counts: NDArray[np.int32],
    centred: NDArray[np.float32],
    w_enc: NDArray[np.float32],
    b_enc: NDArray[np.float32],
    values: NDArray[np.float32],
) -> None:
    """``values[n, j] = relu(centred[n] . w_enc[f] + b_enc[f])`` of the chosen features f."""
    dot_rows(features, counts, centred, w_enc, values)
    for n in range(len(counts)):
        for slot in range(counts[n]):
            values[n, slot] = max(values[n, slot] + b_enc[features[n, slot]], np.float32(0))


@compiled
def add_rows(
    features: NDArray[np.int32],
    counts: NDArray[np.int32],
    values: NDArray[np.float32],
    rows: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """``out[n] += sum_j values[n, j] * rows[features[n, j]]``."""
    for n in range(len(counts)):
        for slot in range(counts[n]):
            value = values[n, slot]
            if value != 0:
                row = rows[features[n, slot]]
                for d in range(out.shape[1]):
                    out[n, d] += value * row[d]


@compiled
def reconstruct(
    features: NDArray[np.int32],
    counts: NDArray[np.int32],
    values: NDArray[np.float32],
    centred: NDArray[np.float32],
    w_dec: NDArray[np.float32],
    ends: NDArray[np.int32],
    weights: NDArray[np.float32],
    error: NDArray[np.float32],
    slopes: NDArray[np.float32],
    g_values: NDArray[np.float32],
) -> None:
    """Errors of the nested reconstructions, and the gradients that follow from them.

    Prefix g reconstructs with the features below ``ends[g]``; the loss is
    ``sum_g weights[g] * |x_hat_g - x|^2 / 2``. Writes ``error`` (N, D), that of the whole
    dictionary; ``slopes`` (G, N, D), the loss's gradient by the output of a feature of group g
    (the weighted errors of all prefixes that hold it); ``g_values`` (N, K), by each activation.
    Features ascend in a row, so the prefixes are reached one after another.
    """
    groups, dim = len(ends), centred.shape[1]
    for n in range(len(counts)):
        for d in range(dim):
            error[n, d] = -centred[n, d]
        slot = 0
        for g in range(groups):
            while slot < counts[n] and features[n, slot] < ends[g]:
                value, row = values[n, slot], w_dec[features[n, slot]]
                for d in range(dim):
                    error[n, d] += value * row[d]
                slot += 1
            for d in range(dim):
                slopes[g, n, d] = weights[g] * error[n, d]
        for g in range(groups - 2, -1, -1):
            for d in range(dim):
                slopes[g, n, d] += slopes[g + 1, n, d]
        g = 0
        for slot in range(g_values.shape[1]):
            total = np.float32(0)
            if slot < counts[n] and values[n, slot] > 0:
                while features[n, slot] >= ends[g]:
                    g += 1
                row = w_dec[features[n, slot]]
                for d in range(dim):
                    total += slopes[g, n, d] * row[d]
            g_values[n, slot] = total


@compiled
def sum_rows(
    slope: NDArray[np.float32],
    centred: NDArray[np.float32],
    error: NDArray[np.float32],
    values: NDArray[np.float32],
    by_column: NDArray[np.float64],
    numbers: NDArray[np.float64],
) -> None:
    """Add to ``by_column`` (2, D) the sums of ``slope`` and ``centred`` (N, D), and to ``numbers``
    the sums of ``error^2`` and ``centred^2`` and how many ``values`` (N, K) are positive."""
    for n in range(len(centred)):
        wrong, length = np.float32(0), np.float32(0)
        for d in range(centred.shape[1]):
            wrong += error[n, d] * error[n, d]
            length += centred[n, d] * centred[n, d]
            by_column[0, d] += slope[n, d]
            by_column[1, d] += centred[n, d]
        numbers[0] += wrong
        numbers[1] += length
        for slot in range(values.shape[1]):
            numbers[2] += values[n, slot] > 0


@compiled
def transpose(
    features: NDArray[np.int32],
    counts: NDArray[np.int32],
    values: NDArray[np.float32],
    width: int,
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """(starts (F + 1), slots): the numbers ``n * K + j`` of the slots with positive values,
    feature by feature.

    A counting sort: within a feature, rows ascend.
    """
    starts = np.zeros(width + 1, dtype=np.int64)
    for n in range(len(counts)):
        for slot in range(counts[n]):
            starts[features[n, slot] + 1] += values[n, slot] > 0
    for f in range(width):
        starts[f + 1] += starts[f]
    place = starts[:-1].copy()
    slots = np.empty(starts[width], dtype=np.int32)
    for n in range(len(counts)):
        for slot in range(counts[n]):
            f = features[n, slot]
            if values[n, slot] > 0:
                slots[place[f]] = n * features.shape[1] + slot
                place[f] += 1
    return starts, slots


@compiled
def _adam_row(
    p: NDArray[np.float32],
    g: NDArray[np.float32],
    m: NDArray[np.float32],
    v: NDArray[np.float32],
    adam: NDArray[np.float32],
) -> None:
    """One Adam step of a row; ``adam`` holds (rate / (1 - beta1^t), beta1, beta2,
    1 / sqrt(1 - beta2^t), epsilon)."""
    rate, beta1, beta2, unbias, epsilon = adam
    for d in range(len(p)):
        m[d] = beta1 * m[d] + (np.float32(1) - beta1) * g[d]
        v[d] = beta2 * v[d] + (np.float32(1) - beta2) * g[d] * g[d]
        p[d] -= rate * m[d] / (np.sqrt(v[d]) * unbias + epsilon)


@compiled
def gradient_rows(
    first: int,
    last: int,
    starts: NDArray[np.int64],
    slots: NDArray[np.int32],
    slot_count: int,
    values: NDArray[np.float32],
    g_values: NDArray[np.float32],
    slopes: NDArray[np.float32],
    centred: NDArray[np.float32],
    ends: NDArray[np.int32],
    g_enc: NDArray[np.float32],
    g_b: NDArray[np.float32],
    g_dec: NDArray[np.float32],
) -> None:
    """Gradients of the features ``first`` to ``last - 1``, added to the (last - first) rows of
    ``g_enc``, ``g_b`` and ``g_dec``."""
    dim, g = centred.shape[1], 0
    for f in range(first, last):
        while f >= ends[g]:
            g += 1
        enc, dec = g_enc[f - first], g_dec[f - first]
        for place in range(starts[f], starts[f + 1]):
            n, slot = divmod(slots[place], slot_count)
            value, slope = values[n, slot], g_values[n, slot]
            g_b[f - first] += slope
            for d in range(dim):
                dec[d] += value * slopes[g, n, d]
                enc[d] += slope * centred[n, d]


@compiled
def update_rows(
    first: int,
    last: int,
    starts: NDArray[np.int64],
    slots: NDArray[np.int32],
    slot_count: int,
    values: NDArray[np.float32],
    g_values: NDArray[np.float32],
    slopes: NDArray[np.float32],
    centred: NDArray[np.float32],
    ends: NDArray[np.int32],
    extra_row: NDArray[np.int32],
    extra_enc: NDArray[np.float32],
    extra_b: NDArray[np.float32],
    extra_dec: NDArray[np.float32],
    decoder_extra: NDArray[np.float32],
    w_enc: NDArray[np.float32],
    b_enc: NDArray[np.float32],
    w_dec: NDArray[np.float32],
    moments: tuple[NDArray[np.float32], ...],
    low: NDArray[np.uint16],
    adam: NDArray[np.float32],
    through_bias: NDArray[np.float32],
) -> None:
    """Sum the gradients of the features ``first`` to ``last - 1`` and take their Adam step.

    A decoder row's gradient loses its part along the row before, and the row gets unit norm after.
    ``extra_*`` are further gradients (AuxK's) of the features with ``extra_row[f] >= 0``;
    ``decoder_extra`` (F, D) or (0, D) those of a penalty on the decoder. ``moments`` are Adam's of
    w_enc, b_enc, w_dec. ``low`` (F, D) or (0, D) receives w_enc as bfloat16 bits. ``through_bias``
    (D) collects ``sum_f db_enc[f] * w_enc[f]`` before the update, for the gradient of b_dec.
    """
    m_enc, v_enc, m_b, v_b, m_dec, v_dec = moments
    dim = centred.shape[1]
    enc, dec = np.zeros((1, dim), dtype=np.float32), np.zeros((1, dim), dtype=np.float32)
    bias = np.zeros(1, dtype=np.float32)
    for f in range(first, last):
        enc[:], dec[:], bias[0] = 0, 0, 0
        gradient_rows(
            f, f + 1, starts, slots, slot_count, values, g_values, slopes, centred, ends,
            enc, bias, dec,
        )  # fmt: skip
        extra = extra_row[f]
        if extra >= 0:
            bias[0] += extra_b[extra]
            for d in range(dim):
                enc[0, d] += extra_enc[extra, d]
                dec[0, d] += extra_dec[extra, d]
        if len(decoder_extra):
            for d in range(dim):
                dec[0, d] += decoder_extra[f, d]

        row = w_dec[f]
        radial = np.float32(0)
        for d in range(dim):
            radial += dec[0, d] * row[d]
            through_bias[d] += bias[0] * w_enc[f, d]
        for d in range(dim):
            dec[0, d] -= radial * row[d]
        _adam_row(row, dec[0], m_dec[f], v_dec[f], adam)
        _adam_row(w_enc[f], enc[0], m_enc[f], v_enc[f], adam)
        _adam_row(b_enc[f : f + 1], bias, m_b[f : f + 1], v_b[f : f + 1], adam)
        square = np.float32(0)
        for d in range(dim):
            square += row[d] * row[d]
        scale = np.float32(1) / np.sqrt(square)
        for d in range(dim):
            row[d] *= scale
        if len(low):
            for d in range(dim):  # round to nearest, ties to even
                bits: Any = _bits_of(w_enc[f, d])  # type: ignore[call-arg]
                low[f, d] = (
                    bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
                ) >> np.uint32(16)


class Lanes:
    """One Python thread a core. Each runs its share of the rows or features from end to end, with
    torch's own threading off, so that what it has just computed is still in its cache."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool = ThreadPoolExecutor(count, initializer=partial(compute_with, 1))
        # at::set_num_threads is remembered for threads to come: keep that as it was for others.
        threads = torch.get_num_threads()
        list(self._pool.map(lambda _: compute_with(1), range(count)))
        torch.set_num_threads(threads)

    def run(self, work: Callable[[int, int], T], total: int, *, grain: int = 1) -> list[T]:
        """``work(start, stop)`` on ``count`` even shares of ``range(total)``; waits for all.

        Shares begin at multiples of ``grain``. A single lane is the calling thread.
        """
        grains = -(-total // grain)
        cuts = [min(grains * i // self.count * grain, total) for i in range(self.count + 1)]
        shares = [(a, b) for a, b in pairwise(cuts) if a < b]
        if self.count == 1:
            return [work(*share) for share in shares]
        return list(self._pool.map(lambda share: work(*share), shares))


@cache
def _lanes(count: int, _process: int) -> Lanes:
    return Lanes(count)


def current_lanes() -> Lanes:
    """As many lanes as torch has threads, those of this process: a fork has none."""
    return _lanes(torch.get_num_threads(), os.getpid())

"""The loops of a k-sparse autoencoder on a CPU, compiled by Numba.

Every function works on a range of rows or features without the interpreter's lock, so that one
Python thread per core can run the whole step (see `Lanes`). No array of shape (N, K, D) and no
gradient of shape (F, D) is written: a feature's gradient stays in the first-level cache between its
sum and Adam's update of the feature's row.

Shapes: N rows, D dimensions, F features, K slots per row (row n uses the first ``counts[n]``),
G nested prefixes of the dictionary (1 but for Matryoshka).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

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
"""Pre-activations that are compared with a bound at once."""
_STRIPE = 32
"""Pre-activations of which only the largest is compared at first."""


@intrinsic
def _bits_of(_typing: Any, _value: Any) -> Any:
    """The bit pattern of a float32."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.uint32(types.float32), generate


@compiled
def kth_largest(values: NDArray[Any], count: int, k: int) -> Any:
    """The k-th largest of ``values[:count]`` by Hoare's selection, which reorders them."""
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
    """The features of the k largest positive pre-activations of each row, in ascending order.

    ``bits`` (N, F) are floating-point numbers seen as signed integers of their size: positive
    floats keep their order as integers, and negative floats stay negative. Writes ``features``
    (N, >= k) and ``counts`` (N). Of equal values, those of lower feature numbers are chosen.

    A row is cut into stripes; a stripe holds every ``len(maxima)``-th value. The k-th largest
    maximum of the stripes is at most the k-th largest value, so smaller values are not considered.
    """
    rows, width = bits.shape
    stripes = max(1, min(width, max(width // _STRIPE, 4 * k)))
    maxima = np.empty(stripes, dtype=bits.dtype)
    scratch = np.empty(width, dtype=bits.dtype)
    candidates = np.empty(width + 1, dtype=np.int32)
    one, none = (
        bits.dtype.type(1),
        bits.dtype.type(0),
    )  # constants of one type, so that the loop vectorises
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
            least = kth_largest(maxima, stripes, k)
            if least > bound:
                bound = least
        count = 0
        for start in range(0, width, _BLOCK):
            block = row[start : start + _BLOCK]
            hit = none
            for i in range(len(block)):
                hit |= one if block[i] >= bound else none
            if hit:
                for i in range(len(block)):  # without a branch, which would mostly be mispredicted
                    candidates[count] = start + i
                    count += block[i] >= bound
        if count <= k:
            features[n, :count] = candidates[:count]
            counts[n] = count
            continue
        for i in range(count):
            scratch[i] = row[candidates[i]]
        last = kth_largest(scratch, count, k)
        ties = k
        for i in range(count):
            if row[candidates[i]] > last:
                ties -= 1
        kept = 0
        for i in range(count):
            value = row[candidates[i]]
            if value > last or (value == last and ties > 0):
                if value == last:
                    ties -= 1
                features[n, kept] = candidates[i]
                kept += 1
        counts[n] = kept


@compiled
def keep_above(
    values: NDArray[np.float32],
    bound: float,
    features: NDArray[np.int32],
    counts: NDArray[np.int32],
) -> None:
    """Drop, in place, the chosen features whose ``values`` (N, K) are below ``bound``.

    Values of unused slots become 0.
    """
    for n in range(len(counts)):
        count = 0
        for slot in range(counts[n]):
            if values[n, slot] >= bound:
                features[n, count], values[n, count] = features[n, slot], values[n, slot]
                count += 1
        counts[n] = count
        values[n, count:] = 0


@compiled
def dot_rows(
    features: NDArray[np.int32],
    counts: NDArray[np.int32],
    a: NDArray[np.float32],
    rows: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """``out[n, j] = a[n] . rows[features[n, j]]``; unused slots become 0."""
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
def reconstruct(
    features: NDArray[np.int32],
    counts: NDArray[np.int32],
    values: NDArray[np.float32],
    centred: NDArray[np.float32],
    w_dec: NDArray[np.float32],
    ends: NDArray[np.int32],
    weights: NDArray[np.float32],
    error: NDArray[np.float32],
    output_gradients: NDArray[np.float32],
    g_values: NDArray[np.float32],
) -> None:
    """Errors of the nested reconstructions, and the gradients that follow from them.

    Prefix g reconstructs with the features below ``ends[g]``; the loss is
    ``sum_g weights[g] * |x_hat_g - x|^2 / 2``. The function writes three arrays:

    - ``error`` (N, D), the error of the whole dictionary;
    - ``output_gradients`` (G, N, D), the gradient of the loss by the output of the features of
      group g, which is the sum of the weighted errors of all prefixes with that group;
    - ``g_values`` (N, K), the gradient of the loss by each activation.

    Features ascend in a row, so the prefixes are complete one after another.
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
                output_gradients[g, n, d] = weights[g] * error[n, d]
        for g in range(groups - 2, -1, -1):
            for d in range(dim):
                output_gradients[g, n, d] += output_gradients[g + 1, n, d]
        g = 0
        for slot in range(g_values.shape[1]):
            total = np.float32(0)
            if slot < counts[n] and values[n, slot] > 0:
                while features[n, slot] >= ends[g]:
                    g += 1
                row = w_dec[features[n, slot]]
                for d in range(dim):
                    total += output_gradients[g, n, d] * row[d]
            g_values[n, slot] = total


@compiled
def sum_rows(
    output_gradient: NDArray[np.float32],
    centred: NDArray[np.float32],
    error: NDArray[np.float32],
    values: NDArray[np.float32],
    by_column: NDArray[np.float64],
    numbers: NDArray[np.float64],
) -> None:
    """Add sums over the rows to ``by_column`` and ``numbers``.

    ``by_column`` (2, D) receives the sums of ``output_gradient`` and ``centred`` (N, D).
    ``numbers`` receives the sums of ``error^2`` and ``centred^2``, and the number of positive
    ``values`` (N, K).
    """
    for n in range(len(centred)):
        wrong, length = np.float32(0), np.float32(0)
        for d in range(centred.shape[1]):
            wrong += error[n, d] * error[n, d]
            length += centred[n, d] * centred[n, d]
            by_column[0, d] += output_gradient[n, d]
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
    """(starts (F + 1), slots): the slots with positive values, sorted by feature.

    Slot j of row n has the number ``n * K + j``. The sort is a counting sort: within a feature,
    rows ascend.
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


class Firings(NamedTuple):
    """The slots where each feature fires in a batch, and the arrays that make its gradients."""

    starts: NDArray[np.int64]
    """Feature f fires in the slots numbered ``slots[starts[f]:starts[f + 1]]`` (F + 1)."""
    slots: NDArray[np.int32]
    """Numbers of slots with positive values, sorted by feature; see `transpose`."""
    values: NDArray[np.float32]
    """Activations (N, K)."""
    g_values: NDArray[np.float32]
    """Gradients of the loss by the activations (N, K)."""
    output_gradients: NDArray[np.float32]
    """Gradients of the loss by the output of a feature of each nested group (G, N, D)."""
    centred: NDArray[np.float32]
    """Inputs of the encoder (N, D)."""
    ends: NDArray[np.int32]
    """Where the nested prefixes end (G)."""


class FurtherGradients(NamedTuple):
    """Gradients beside the gradients of the reconstruction."""

    rows: NDArray[np.int32]
    """(F): a feature's row in the three arrays below, or -1 without a gradient of AuxK."""
    w_enc: NDArray[np.float32]
    """(E, D)"""
    b_enc: NDArray[np.float32]
    """(E)"""
    w_dec: NDArray[np.float32]
    """(E, D)"""
    decoder: NDArray[np.float32]
    """Gradient of penalties on the decoder (F, D), or empty (0, D)."""


class Parameters(NamedTuple):
    """The arrays that an update changes: the parameters, and Adam's two moments of each."""

    w_enc: NDArray[np.float32]
    """(F, D)"""
    b_enc: NDArray[np.float32]
    """(F)"""
    w_dec: NDArray[np.float32]
    """(F, D), rows of unit norm."""
    m_w_enc: NDArray[np.float32]
    v_w_enc: NDArray[np.float32]
    m_b_enc: NDArray[np.float32]
    v_b_enc: NDArray[np.float32]
    m_w_dec: NDArray[np.float32]
    v_w_dec: NDArray[np.float32]
    low: NDArray[np.uint16]
    """A copy of w_enc in bfloat16 bits (F, D), or empty (0, D)."""


class AdamNumbers(NamedTuple):
    """The numbers of one Adam step (Kingma & Ba 2015)."""

    rate: np.float32
    """Learning rate over (1 - beta1^t)."""
    beta1: np.float32
    beta2: np.float32
    unbias: np.float32
    """1 / sqrt(1 - beta2^t)."""
    epsilon: np.float32


@compiled
def _adam_row(
    p: NDArray[np.float32],
    g: NDArray[np.float32],
    m: NDArray[np.float32],
    v: NDArray[np.float32],
    adam: AdamNumbers,
) -> None:
    """One Adam step of a row."""
    rate, beta1, beta2, unbias, epsilon = adam
    for d in range(len(p)):
        m[d] = beta1 * m[d] + (np.float32(1) - beta1) * g[d]
        v[d] = beta2 * v[d] + (np.float32(1) - beta2) * g[d] * g[d]
        p[d] -= rate * m[d] / (np.sqrt(v[d]) * unbias + epsilon)


@compiled
def gradient_rows(
    first: int,
    last: int,
    firings: Firings,
    g_enc: NDArray[np.float32],
    g_b: NDArray[np.float32],
    g_dec: NDArray[np.float32],
) -> None:
    """Gradients of the features ``first`` to ``last - 1``, added to the (last - first) rows of
    ``g_enc``, ``g_b`` and ``g_dec``."""
    starts, slots, values, g_values, output_gradients, centred, ends = firings
    dim, slot_count, g = centred.shape[1], values.shape[1], 0
    for f in range(first, last):
        while f >= ends[g]:
            g += 1
        enc, dec = g_enc[f - first], g_dec[f - first]
        for place in range(starts[f], starts[f + 1]):
            n, slot = divmod(slots[place], slot_count)
            value, g_value = values[n, slot], g_values[n, slot]
            g_b[f - first] += g_value
            for d in range(dim):
                dec[d] += value * output_gradients[g, n, d]
                enc[d] += g_value * centred[n, d]


@compiled
def _unit_norm(row: NDArray[np.float32]) -> None:
    """Scale a row to unit norm."""
    square = np.float32(0)
    for d in range(len(row)):
        square += row[d] * row[d]
    scale = np.float32(1) / np.sqrt(square)
    for d in range(len(row)):
        row[d] *= scale


@compiled
def _round_row(row: NDArray[np.float32], low: NDArray[np.uint16]) -> None:
    """The bfloat16 bits of a row: rounded to nearest, ties to even."""
    for d in range(len(row)):
        bits: Any = _bits_of(row[d])  # type: ignore[call-arg]
        low[d] = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(
            16
        )


@compiled
def update_rows(
    first: int,
    last: int,
    firings: Firings,
    further: FurtherGradients,
    parameters: Parameters,
    adam: AdamNumbers,
    through_bias: NDArray[np.float32],
) -> None:
    """Sum the gradients of the features ``first`` to ``last - 1`` and take their Adam step.

    A decoder row's gradient loses its part along the row before the step, and the row gets unit
    norm after the step. ``through_bias`` (D) collects ``sum_f db_enc[f] * w_enc[f]`` before the
    update, for the gradient of b_dec.
    """
    w_enc, b_enc, w_dec, m_enc, v_enc, m_b, v_b, m_dec, v_dec, low = parameters
    dim = w_enc.shape[1]
    enc, dec = np.zeros((1, dim), dtype=np.float32), np.zeros((1, dim), dtype=np.float32)
    bias = np.zeros(1, dtype=np.float32)
    for f in range(first, last):
        enc[:], dec[:], bias[0] = 0, 0, 0
        gradient_rows(f, f + 1, firings, enc, bias, dec)
        extra = further.rows[f]
        if extra >= 0:
            bias[0] += further.b_enc[extra]
            for d in range(dim):
                enc[0, d] += further.w_enc[extra, d]
                dec[0, d] += further.w_dec[extra, d]
        if len(further.decoder):
            for d in range(dim):
                dec[0, d] += further.decoder[f, d]

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
        _unit_norm(row)
        if len(low):
            _round_row(w_enc[f], low[f])


class Lanes:
    """One Python thread per core.

    Each thread runs all operations on its share of the rows or features, with torch's own threading
    off, so that intermediate results stay in the core's cache.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool = ThreadPoolExecutor(count, initializer=partial(compute_with, 1))
        # at::set_num_threads applies to all later threads too: restore the count for others.
        threads = torch.get_num_threads()
        list(self._pool.map(lambda _: compute_with(1), range(count)))
        torch.set_num_threads(threads)

    def run(self, work: Callable[[int, int], T], total: int, *, grain: int = 1) -> list[T]:
        """Run ``work(start, stop)`` on ``count`` even shares of ``range(total)``, and wait.

        Shares begin at multiples of ``grain``. With a single lane the calling thread works.
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
    """This process' lanes, one per torch thread; a forked process gets new ones."""
    return _lanes(torch.get_num_threads(), os.getpid())

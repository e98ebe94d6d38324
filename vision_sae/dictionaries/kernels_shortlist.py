"""The k largest pre-activations of each row, exactly, by a product of small integers.

Vectors and encoder rows are rounded to 16-bit integers. A core multiplies twice as many of them in
an instruction as of float32 numbers, and their product gives each pre-activation up to an error
that is bounded below. Features that the bound rules out are dropped at once. The few others are a
row's list: they are computed in float32, and the k largest of them are chosen.

The bound: let ``x = a (p + d)`` and ``w = c (q + e)``, with integers p and q and rounding errors d
and e. By Cauchy and Schwarz, ``|x . w - a c (p . q)| <= a c (|d| |q| + |p| |e| + |d| |e|)``.

Numba compiles the loops. `bound_tile` is LLVM's intermediate code, because no language that Numba
compiles has the instruction that multiplies 16-bit integers and adds them in pairs.

Shapes: N rows, D dimensions in H pairs, F features in P panels of C features, k features to choose,
L places of a list.
"""

from __future__ import annotations

import os
import platform
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from vision_sae.compiled import compiled
from vision_sae.dictionaries.kernels_cpu import kth_largest

_LARGEST = 32767.0
"""The largest integer."""
_LONGEST = 46000.0
"""The largest norm of a vector of integers. The product of two such norms is below 2^31: no sum of
products overflows, by Cauchy and Schwarz."""
_UNROLLED = 2
"""Pairs of dimensions in a round of the loop over the dimensions."""
NO_LIST, WRONG_GUESS = -1, -2
"""Counts of rows that were not listed."""
_RANGE = np.float32(1e-15), np.float32(1e15)
"""A vector is rounded if its largest number lies between these two: float32 holds the squares."""
_UNIT = np.float32(2**-24)
"""The largest relative error of a float32 operation."""
_POSITIVE = np.float32(np.finfo(np.float32).tiny)
"""The least pre-activation of a feature that fires."""


def pairs_of(dim: int) -> int:
    """H, the pairs of dimensions of rounded vectors."""
    return -(-dim // (2 * _UNROLLED)) * _UNROLLED


class Tile(NamedTuple):
    """The part of the product whose sums stay in a core's registers."""

    rows: int
    lanes: int
    """Sums in a register. A row of the tile has two registers."""
    instruction: str
    """LLVM's name of the instruction that multiplies integers and adds them in pairs."""
    adds: bool
    """Whether the instruction adds to the sum, too (VNNI)."""

    @property
    def columns(self) -> int:
        """Features of a tile."""
        return 2 * self.lanes


@cache
def tile() -> Tile | None:
    """The tile of this CPU, or None if the CPU lacks the instruction."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return None
    has = _cpu_features()
    if {"avx512f", "avx512bw"} <= has:
        vnni = "avx512vnni" in has
        name = "vpdpwssd.512" if vnni else "pmaddw.d.512"
        return Tile(12, 16, f"llvm.x86.avx512.{name}", vnni)
    return Tile(6, 8, "llvm.x86.avx2.pmadd.wd", False) if "avx2" in has else None


def _cpu_features() -> set[str]:
    """The features of the CPU that Numba compiles for."""
    text = os.environ.get("NUMBA_CPU_FEATURES") or binding.get_host_cpu_features().flatten()
    return {part[1:] for part in text.split(",") if part.startswith("+")}


class Rounded(NamedTuple):
    """Encoder rows in integers, and what turns their products into bounds of pre-activations."""

    panels: NDArray[np.int16]
    """(P, H, C, 2); 0 beyond F and D."""
    scale: NDArray[np.float32]
    """The size c of an integer of each row (P * C)."""
    bias: NDArray[np.float32]
    """b_enc, rounded up; minus infinity beyond F (P * C)."""
    slack: NDArray[np.float32]
    """How much the upper bound must be lowered for the rounding of b_enc (P * C)."""
    norms: NDArray[np.float32]
    """Norms of each row's integers and of its rounding errors, in integers (P * C, 2)."""


class Lists(NamedTuple):
    """The features of each row that can be among its k largest."""

    features: NDArray[np.int32]
    """Ascending (N, L); row n uses ``counts[n]`` places."""
    upper: NDArray[np.float32]
    """Upper bounds of the pre-activations (N, L)."""
    errors: NDArray[np.float32]
    """The most by which a product of integers is wrong, in sizes of the encoder's integers (N)."""
    counts: NDArray[np.int32]
    """(N); `NO_LIST` where L places are too few or the row cannot be rounded, and `WRONG_GUESS`."""
    least: NDArray[np.float32]
    """At most the k-th largest pre-activation of each row, or the least positive number (N)."""


@intrinsic  # type: ignore[untyped-decorator]
def bound_tile(
    _typing: Any, x: Any, limits: Any, rounded: Any, row: Any, panel: Any, upper: Any, hits: Any
) -> Any:
    """Upper bounds of the pre-activations of a tile: rows from ``row`` on, and a panel.

    ``x`` (N, H, 2) are integers, and ``limits`` (N, 3) of each row the size of an integer, the
    error of a product, and the least bound of interest. ``rounded`` is a `Rounded`. Writes
    ``upper`` (rows, C) float32, and ``hits`` (rows) uint32: bit j tells whether column j reaches
    the least bound of interest.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds = signature.args
        parts = [builder.extract_value(arguments[2], i) for i in range(3)]
        arrays = [
            context.make_array(kind)(context, builder, value)
            for kind, value in zip(
                (*kinds[:2], *kinds[2].types[:3], *kinds[5:]),
                (*arguments[:2], *parts, *arguments[5:]),
                strict=True,
            )
        ]
        _TileCode(builder).emit(*arrays, row=arguments[3], panel=arguments[4])
        return context.get_dummy_value()

    return types.void(x, limits, rounded, types.int64, types.int64, upper, hits), generate


class _TileCode:
    """Writes the code of `bound_tile`."""

    def __init__(self, builder: Any) -> None:
        found = tile()
        assert found is not None, "the caller asks `tile` first"
        self._builder, self._tile = builder, found
        self._int = ir.IntType(64)
        self._sums = ir.VectorType(ir.IntType(32), found.lanes)
        self._floats = ir.VectorType(ir.FloatType(), found.lanes)

    def emit(
        self,
        x: Any,
        limits: Any,
        panels: Any,
        scale: Any,
        bias: Any,
        upper: Any,
        hits: Any,
        *,
        row: Any,
        panel: Any,
    ) -> None:
        """The sums lie in registers until the loop over the pairs of dimensions ends."""
        builder, rows = self._builder, self._tile.rows
        pairs = builder.extract_value(x.shape, 1)
        sums = self._sum_products(
            self._at(x, self._times(self._times(row, pairs), 4)),
            self._at(panels, self._times(self._times(panel, pairs), 4 * self._tile.columns)),
            pairs,
        )
        feature = self._times(panel, 4 * self._tile.columns)
        scales, biases = (
            self._registers(self._at(array, feature), self._floats) for array in (scale, bias)
        )
        limit = self._at(limits, self._times(row, 12))
        for r in range(rows):
            numbers = (self._load(limit, 12 * r + 4 * i, ir.FloatType()) for i in range(3))
            size, error, least = (self._repeated(number, self._floats) for number in numbers)
            reached = ir.IntType(32)(0)
            for c in range(2):
                bound = builder.sitofp(sums[2 * r + c], self._floats)
                bound = builder.fadd(builder.fmul(bound, size), error)
                bound = builder.fadd(builder.fmul(bound, scales[c]), biases[c])
                self._store(bound, self._at(upper), (2 * r + c) * 4 * self._tile.lanes)
                bits = builder.fcmp_ordered(">=", bound, least)
                bits = builder.bitcast(bits, ir.IntType(self._tile.lanes))
                bits = builder.zext(bits, reached.type)
                bits = builder.shl(bits, reached.type(c * self._tile.lanes))
                reached = builder.or_(reached, bits)
            self._store(reached, self._at(hits), 4 * r)

    def _sum_products(self, x: Any, panel: Any, pairs: Any) -> list[Any]:
        """The sums of the tile: two registers for each row. ``x`` and ``panel`` are addresses."""
        builder, rows = self._builder, self._tile.rows
        starts = [builder.add(x, self._times(pairs, 4 * r)) for r in range(rows)]
        before = builder.block
        loop, after = builder.append_basic_block("pairs"), builder.append_basic_block("after")
        builder.branch(loop)
        builder.position_at_end(loop)
        pair = builder.phi(self._int)
        sums = [builder.phi(self._sums) for _ in range(2 * rows)]
        added = sums
        for part in range(_UNROLLED):
            here = builder.add(pair, self._int(part))
            place = builder.add(panel, self._times(here, 4 * self._tile.columns))
            features = self._registers(place, self._sums)
            for r in range(rows):
                two = self._load(builder.add(starts[r], self._times(here, 4)), 0, ir.IntType(32))
                two = self._repeated(two, self._sums)
                both = [self._multiply_add(added[2 * r + c], two, features[c]) for c in range(2)]
                added = [*added[: 2 * r], *both, *added[2 * r + 2 :]]
        following = builder.add(pair, self._int(_UNROLLED))
        for phi, value in zip([pair, *sums], [following, *added], strict=True):
            phi.add_incoming(ir.Constant(phi.type, None), before)
            phi.add_incoming(value, loop)
        builder.cbranch(builder.icmp_unsigned("<", following, pairs), loop, after)
        builder.position_at_end(after)
        return added

    def _multiply_add(self, total: Any, two: Any, features: Any) -> Any:
        """``total`` and the sum of the products of two integers, in each lane."""
        builder, name = self._builder, self._tile.instruction
        if self._tile.adds:
            kind = ir.FunctionType(self._sums, [self._sums] * 3)
            return builder.call(self._function(name, kind), [total, two, features])
        integers = ir.VectorType(ir.IntType(16), 2 * self._tile.lanes)
        kind = ir.FunctionType(self._sums, [integers] * 2)
        operands = [builder.bitcast(value, integers) for value in (two, features)]
        return builder.add(total, builder.call(self._function(name, kind), operands))

    def _function(self, name: str, kind: Any) -> Any:
        """LLVM's function of that name, declared once in a module."""
        module = self._builder.module
        return module.globals.get(name) or ir.Function(module, kind, name)

    def _times(self, number: Any, factor: Any) -> Any:
        factor = self._int(factor) if isinstance(factor, int) else factor
        return self._builder.mul(number, factor)

    def _at(self, array: Any, offset: Any = None) -> Any:
        """The address ``offset`` bytes into an array."""
        start = self._builder.ptrtoint(array.data, self._int)
        return start if offset is None else self._builder.add(start, offset)

    def _registers(self, address: Any, kind: Any) -> list[Any]:
        """The two registers of a panel's numbers."""
        return [self._load(address, c * 4 * self._tile.lanes, kind) for c in range(2)]

    def _pointer(self, address: Any, offset: int, kind: Any) -> Any:
        place = self._builder.add(address, self._int(offset))
        return self._builder.inttoptr(place, kind.as_pointer())

    def _load(self, address: Any, offset: int, kind: Any) -> Any:
        return self._builder.load(self._pointer(address, offset, kind), align=4)

    def _store(self, value: Any, address: Any, offset: int) -> None:
        self._builder.store(value, self._pointer(address, offset, value.type), align=4)

    def _repeated(self, number: Any, vector: Any) -> Any:
        """A number in all lanes of a vector."""
        nothing, int32 = ir.Constant(vector, ir.Undefined), ir.IntType(32)
        first = self._builder.insert_element(nothing, number, int32(0))
        zeros = ir.Constant(ir.VectorType(int32, vector.count), None)
        return self._builder.shuffle_vector(first, nothing, zeros)


@intrinsic  # type: ignore[untyped-decorator]
def _lowest_bit(_typing: Any, _value: Any) -> Any:
    """The number of the lowest bit that is set in a uint32."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.IntType(1)(1))

    return types.int32(types.uint32), generate


@compiled
def _round_vector(
    vector: NDArray[np.float32], out: NDArray[np.float32]
) -> tuple[np.float32, np.float32, np.float32]:
    """(size of an integer, norm of the integers, norm of the rounding errors), and the integers in
    ``out``, as floats. The size is NaN for a vector that is beyond `_RANGE` or not finite."""
    square, bits, most = np.float32(0), vector.view(np.int32), np.int32(0)
    for d in range(len(vector)):
        square += vector[d] * vector[d]
    for d in range(len(vector)):  # the bits of positive floats have the order of the floats
        most = max(most, bits[d] & np.int32(0x7FFFFFFF))
    if most == 0:
        out[:] = 0
        return np.float32(1), np.float32(0), np.float32(0)
    largest = np.array([most], dtype=np.int32).view(np.float32)[0]
    if not (_RANGE[0] < largest < _RANGE[1]):
        return np.float32(np.nan), np.float32(0), np.float32(0)
    size = max(np.sqrt(square) / np.float32(_LONGEST), largest / np.float32(_LARGEST))
    inverse, integers, errors = np.float32(1) / size, np.float32(0), np.float32(0)
    for d in range(len(vector)):
        exact = vector[d] * inverse
        whole = np.rint(exact)
        out[d] = whole
        integers += whole * whole
        errors += (exact - whole) * (exact - whole)
    return size, np.sqrt(integers), np.sqrt(errors)


@compiled
def round_panels(
    first: int,
    last: int,
    w_enc: NDArray[np.float32],
    b_enc: NDArray[np.float32],
    rounded: Rounded,
) -> None:
    """Fill the panels ``first`` to ``last - 1`` from w_enc (F, D) and b_enc (F).

    The scale of a feature is NaN where its row cannot be rounded.
    """
    panels, scale, bias, slack, norms = rounded
    width, dim = w_enc.shape
    columns, integers = panels.shape[2], np.zeros(2 * panels.shape[1], dtype=np.float32)
    for p in range(first, last):
        for j in range(columns):
            f = p * columns + j
            if f >= width:
                panels[p, :, j, :] = 0
                scale[f], bias[f], slack[f], norms[f] = 0, -np.inf, 0, 0
                continue
            scale[f], norms[f, 0], norms[f, 1] = _round_vector(w_enc[f], integers[:dim])
            for pair in range(panels.shape[1]):
                panels[p, pair, j, 0] = np.int16(integers[2 * pair])
                panels[p, pair, j, 1] = np.int16(integers[2 * pair + 1])
            lost = np.float32(4) * _UNIT * abs(b_enc[f])
            bias[f], slack[f] = b_enc[f] + lost, lost + lost


@compiled
def round_rows(
    vectors: NDArray[np.float32], x: NDArray[np.int16], numbers: NDArray[np.float32]
) -> None:
    """Fill ``x`` (>= N, H, 2) with the integers of ``vectors`` (N, D), and ``numbers`` (N, 3)
    with what `_round_vector` returns of each. Further rows become 0."""
    integers = np.zeros(2 * x.shape[1], dtype=np.float32)
    for n in range(len(vectors)):
        size, norm, error = _round_vector(vectors[n], integers[: vectors.shape[1]])
        numbers[n, 0], numbers[n, 1], numbers[n, 2] = size, norm, error
        for pair in range(x.shape[1]):
            x[n, pair, 0] = np.int16(integers[2 * pair])
            x[n, pair, 1] = np.int16(integers[2 * pair + 1])
    x[len(vectors) :] = 0


@compiled
def lower_bounds(
    n: int, count: int, lists: Lists, rounded: Rounded, out: NDArray[np.float32]
) -> None:
    """Lower bounds of the pre-activations of row n's list of ``count`` features."""
    features, upper, twice = lists.features[n], lists.upper[n], np.float32(2) * lists.errors[n]
    for i in range(count):
        f = features[i]
        out[i] = upper[i] - (twice * rounded.scale[f] + rounded.slack[f])


@compiled
def _shrink(
    k: int,
    count: int,
    least: np.float32,
    n: int,
    lists: Lists,
    rounded: Rounded,
    scratch: NDArray[np.float32],
) -> tuple[int, np.float32]:
    """(count, least) of row n's list without the features that cannot be among the k largest."""
    features, upper = lists.features[n], lists.upper[n]
    if count >= k:
        lower_bounds(n, count, lists, rounded, scratch)
        least = max(least, kth_largest(scratch, count, k))
    kept = 0
    for i in range(count):
        features[kept], upper[kept] = features[i], upper[i]
        kept += upper[i] >= least
    return kept, least


@compiled
def list_largest(
    x: NDArray[np.int16],
    numbers: NDArray[np.float32],
    rounded: Rounded,
    k: int,
    rows: int,
    guess: float,
    lists: Lists,
) -> None:
    """List the features whose pre-activations can be positive and among the k largest of a row.

    ``x`` and ``numbers`` are those of `round_rows`, and ``rows`` divides the rows of x. ``guess``
    is a lower bound of the k-th largest pre-activation as a share of the row's norm, which spares
    work where it is right. A row for which the guess is too large is `WRONG_GUESS`.
    """
    panels, _, _, _, norms = rounded
    total, columns, places = len(lists.counts), panels.shape[2], lists.features.shape[1]
    longest, wrong = norms[:, 0].max(), norms[:, 1].max()
    # What a float32 sum of D products can lose, as a share of the product of the norms.
    rounding = np.float32(4 * x.shape[1] + 16) * _UNIT
    limits = np.zeros((len(x), 3), dtype=np.float32)
    limits[:, 2] = np.inf  # a row that is not listed reaches no bound
    for n in range(total):
        size, norm, error = numbers[n]
        lists.counts[n], lists.least[n] = NO_LIST, _POSITIVE
        if size == size:
            lost = error * longest + norm * wrong + error * wrong
            lost += rounding * (norm + error) * (longest + wrong)
            lists.counts[n] = 0
            lists.errors[n] = size * lost
            limits[n, 0], limits[n, 1] = size, size * lost
            limits[n, 2] = max(_POSITIVE, np.float32(guess) * size * norm)
    upper, hits = np.empty((rows, columns), dtype=np.float32), np.empty(rows, dtype=np.uint32)
    scratch = np.empty(places, dtype=np.float32)
    for p in range(len(panels)):
        for first in range(0, len(x), rows):
            bound_tile(x, limits, rounded, first, p, upper, hits)  # type: ignore[call-arg]
            for r in range(rows):
                if hits[r] == 0:
                    continue
                n, bits = first + r, hits[r]
                count, least = lists.counts[n], limits[n, 2]
                while bits:
                    j = _lowest_bit(bits)
                    bits = np.uint32(bits & (bits - np.uint32(1)))
                    if upper[r, j] < least:  # the bound has risen since the tile
                        continue
                    if count == places:
                        count, least = _shrink(k, count, least, n, lists, rounded, scratch)
                        if count == places:
                            count, least = NO_LIST, np.float32(np.inf)
                            break
                    f = p * columns + j
                    lists.features[n, count], lists.upper[n, count] = f, upper[r, j]
                    count += 1
                lists.counts[n], limits[n, 2] = count, least
    for n in range(total):
        if lists.counts[n] >= 0:
            count, least = _shrink(k, lists.counts[n], limits[n, 2], n, lists, rounded, scratch)
            size, norm, _ = numbers[n]
            guessed, above = np.float32(guess) * size * norm, 0
            lower_bounds(n, count, lists, rounded, scratch)
            for i in range(count):
                above += scratch[i] >= guessed
            settled = guess == 0 or above >= k
            lists.counts[n], lists.least[n] = count if settled else WRONG_GUESS, least


@compiled
def least_bounds(lists: Lists, rounded: Rounded, out: NDArray[np.float32]) -> None:
    """The k largest positive lower bounds of each row, where ``out`` (N, k) was 0."""
    lower = np.empty(lists.features.shape[1], dtype=np.float32)
    for n in range(len(lists.counts)):
        lower_bounds(n, lists.counts[n], lists, rounded, lower)
        count = 0
        for i in range(lists.counts[n]):
            bound = lower[i]
            if bound >= lists.least[n] and bound > 0 and count < out.shape[1]:
                out[n, count] = bound
                count += 1


@compiled
def drop_below(lists: Lists, bound: float) -> None:
    """Drop, in place, the features whose upper bounds are below ``bound``."""
    for n in range(len(lists.counts)):
        features, upper, kept = lists.features[n], lists.upper[n], 0
        for i in range(lists.counts[n]):
            features[kept], upper[kept] = features[i], upper[i]
            kept += upper[i] >= bound
        lists.counts[n] = kept


@compiled
def choose_listed(
    vectors: NDArray[np.float32],
    w_enc: NDArray[np.float32],
    b_enc: NDArray[np.float32],
    lists: Lists,
    k: int,
    features: NDArray[np.int32],
    values: NDArray[np.float32],
    counts: NDArray[np.int32],
) -> None:
    """The k largest positive pre-activations of each row of ``vectors`` (N, D), among those listed.

    Writes ``features`` (N, >= k), ascending, ``values`` (N, >= k), which are 0 in unused slots, and
    ``counts`` (N). Of equal values, those of lower feature numbers are chosen.
    """
    places = lists.features.shape[1]
    exact, scratch = np.empty(places, dtype=np.float32), np.empty(places, dtype=np.float32)
    for n in range(len(vectors)):
        listed, positive = lists.features[n], 0
        for i in range(lists.counts[n]):
            row, total = w_enc[listed[i]], np.float32(0)
            for d in range(len(row)):
                total += vectors[n, d] * row[d]
            total += b_enc[listed[i]]
            listed[positive], exact[positive] = listed[i], total
            positive += total > 0 or total != total  # NaN stays visible
        every, ties, last = positive <= k, 0, np.float32(0)
        if not every:
            scratch[:positive] = exact[:positive]
            last, ties = kth_largest(scratch, positive, k), k
            for i in range(positive):
                ties -= exact[i] > last
        kept = 0
        for i in range(positive):
            if every or exact[i] > last or (exact[i] == last and ties > 0):
                ties -= exact[i] == last
                features[n, kept], values[n, kept] = listed[i], exact[i]
                kept += 1
        counts[n], values[n, kept:] = kept, 0

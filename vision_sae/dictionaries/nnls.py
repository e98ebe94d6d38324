"""Non-negative least squares for many vectors and one set of atoms.

``min |x - f W|^2, f >= 0``, row by row, by the active-set method of Lawson and Hanson (1974, ch.
23) on the Gram matrix, with a Cholesky factor that grows with the active set. The atoms with the
largest correlations with the residual enter the set. Then the coefficients of the whole set are
fitted again, and atoms with negative coefficients leave. With one atom per round and a limit of k
atoms, the method is non-negative orthogonal matching pursuit. SciPy and scikit-learn have no such
limit and solve one vector per call; `tests/benchmarks/nnls.py` measures them 50 to 200 times
slower.

Shapes: N rows, D dimensions, F atoms, of which at most K are in the active set.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vision_sae.compiled import compiled
from vision_sae.dictionaries.atoms import Atoms
from vision_sae.dictionaries.kernels_cpu import current_lanes
from vision_sae.dictionaries.protocol import Codes, to_codes

_DEPENDENT = 1e-12
"""An atom within this squared relative distance of the active set's span cannot enter the set."""
_OPTIMAL = 1e-9
"""A correlation below this share of the largest inner product counts as zero."""


@compiled
def _factor_row(
    gram: NDArray[np.float64], chosen: NDArray[np.int64], lower: NDArray[np.float64], at: int
) -> bool:
    """Write row ``at`` of the Cholesky factor of the chosen atoms' Gram matrix.

    Returns False if the atom depends linearly on the atoms before it.
    """
    atom = chosen[at]
    rest = gram[atom, atom]
    for i in range(at):
        value = gram[atom, chosen[i]]
        for j in range(i):
            value -= lower[at, j] * lower[i, j]
        lower[at, i] = value / lower[i, i]
        rest -= lower[at, i] ** 2
    least = _DEPENDENT * gram[atom, atom]
    lower[at, at] = np.sqrt(max(rest, least))
    return bool(rest > least)


@compiled
def _drop_row(lower: NDArray[np.float64], at: int, count: int) -> None:
    """Remove row and column ``at`` from a Cholesky factor of ``count + 1`` rows.

    The rows behind lose a column; a rank-one update adds the column's outer product to them.
    """
    cosine, sine = np.empty(count), np.empty(count)
    for i in range(at, count):
        lost = lower[i + 1, at]
        for j in range(at):
            lower[i, j] = lower[i + 1, j]
        for j in range(at, i):
            value = (lower[i + 1, j + 1] + sine[j] * lost) / cosine[j]
            lost = cosine[j] * lost - sine[j] * value
            lower[i, j] = value
        diagonal = lower[i + 1, i + 1]
        lower[i, i] = np.sqrt(diagonal**2 + lost**2)
        cosine[i], sine[i] = lower[i, i] / diagonal, lost / diagonal


@compiled
def _fit(
    chosen: NDArray[np.int64],
    count: int,
    lower: NDArray[np.float64],
    target: NDArray[np.float64],
    out: NDArray[np.float64],
) -> None:
    """Write the unconstrained coefficients of the first ``count`` chosen atoms, by substitution."""
    for i in range(count):
        value = target[chosen[i]]
        for j in range(i):
            value -= lower[i, j] * out[j]
        out[i] = value / lower[i, i]
    for i in range(count - 1, -1, -1):
        out[i] /= lower[i, i]
        for j in range(i):  # along a row, because the entries of a column lie far apart
            out[j] -= lower[i, j] * out[i]


@compiled
def _enter(
    gram: NDArray[np.float64],
    correlations: NDArray[np.float64],
    least: float,
    barred: NDArray[np.bool_],
    chosen: NDArray[np.int64],
    held: NDArray[np.float64],
    lower: NDArray[np.float64],
    count: int,
    most: int,
) -> int:
    """Enter the atoms with the largest correlations above ``least``, and bar them from entering
    again. Returns the new count."""
    while count < most:
        entering = -1
        for atom in range(len(correlations)):
            possible = correlations[atom] > least and not barred[atom]
            if possible and (entering < 0 or correlations[atom] > correlations[entering]):
                entering = atom
        if entering < 0:
            break
        barred[entering] = True
        chosen[count], held[count] = entering, 0.0
        count += _factor_row(gram, chosen, lower, count)
    return count


@compiled
def _settle(
    gram: NDArray[np.float64],
    target: NDArray[np.float64],
    chosen: NDArray[np.int64],
    held: NDArray[np.float64],
    fitted: NDArray[np.float64],
    lower: NDArray[np.float64],
    count: int,
) -> int:
    """Move the coefficients ``held`` to their optimum, and remove atoms that turn negative on the
    way. Returns the new count."""
    while True:
        _fit(chosen, count, lower, target, fitted)
        step, stopper = 1.0, -1
        for i in range(count):
            if fitted[i] <= 0:
                reach = held[i] / (held[i] - fitted[i]) if held[i] > 0 else 0.0
                if stopper < 0 or reach < step:
                    step, stopper = reach, i
        for i in range(count):
            held[i] += step * (fitted[i] - held[i])
        if stopper < 0:
            return count
        held[stopper] = 0.0
        for i in range(count - 1, -1, -1):
            if (
                held[i] <= 0 and fitted[i] <= 0
            ):  # the coefficient of an atom that has just entered may be 0
                count -= 1
                for j in range(i, count):
                    chosen[j], held[j], fitted[j] = chosen[j + 1], held[j + 1], fitted[j + 1]
                _drop_row(lower, i, count)


@compiled
def _solve(
    gram: NDArray[np.float64],
    targets: NDArray[np.float64],
    most: int,
    one_by_one: bool,
    out: NDArray[np.float32],
) -> None:
    """Write coefficients (N, F) for inner products (N, F); at most ``most`` are positive a row."""
    width = len(gram)
    chosen = np.empty(most, dtype=np.int64)
    held, fitted, lower = np.empty(most), np.empty(most), np.empty((most, most))
    correlations, barred = np.empty(width), np.empty(width, dtype=np.bool_)
    for n in range(len(targets)):
        target = targets[n]
        largest, count = 0.0, 0
        for atom in range(width):
            correlations[atom], barred[atom] = target[atom], False
            largest = max(largest, abs(target[atom]))
        least = _OPTIMAL * largest
        for _ in range(
            3 * width
        ):  # more than enough rounds: rounding errors must not loop for ever
            step = 1 if one_by_one else 1 + count // 4
            now = _enter(
                gram,
                correlations,
                least,
                barred,
                chosen,
                held,
                lower,
                count,
                min(most, count + step),
            )
            if now == count:
                break
            count = _settle(gram, target, chosen, held, fitted, lower, now)
            entered = False
            for i in range(count):
                entered |= barred[chosen[i]]
            for atom in range(width):
                correlations[atom] = target[atom]
                barred[
                    atom
                ] &= not entered  # after a change of the set, a barred atom may fit again
            for i in range(count):
                share, products = held[i], gram[chosen[i]]
                for atom in range(width):
                    correlations[atom] -= share * products[atom]
        for i in range(count):
            out[n, chosen[i]] = held[i]


def non_negative_codes(targets: Tensor, gram: Tensor, k: int | None) -> Tensor:
    """Non-negative coefficients (N, F), float32; a row's solution does not depend on other rows.

    ``targets`` (N, F) are the vectors' inner products with the atoms, ``gram`` (F, F) the inner
    products of the atoms with each other. With ``k``, at most k coefficients per row are positive.
    """
    inner, products = targets.double().numpy(), gram.double().numpy()
    most = min(k or len(gram), len(gram))
    out = np.zeros(inner.shape, dtype=np.float32)

    def work(start: int, stop: int) -> None:
        _solve(products, inner[start:stop], most, k is not None, out[start:stop])

    current_lanes().run(work, len(inner))
    return torch.from_numpy(out)


class NonNegativeAtoms(Atoms):
    """Codes minimise ``|x - b_dec - f W_dec|^2 + ridge * |f|^2`` over f >= 0.

    With k, non-negative orthogonal matching pursuit chooses the at most k atoms that fire.
    """

    ridge: ClassVar[float] = 0.0
    """Weight of the ridge; 0 is plain least squares."""

    def __init__(self, *, w_dec: Tensor, b_dec: Tensor, k: int | None = None) -> None:
        """Take the weights of `Atoms`."""
        super().__init__(w_dec=w_dec, b_dec=b_dec, k=k)
        self._atoms = w_dec.double()
        self._gram = (self._atoms @ self._atoms.T).cpu()
        self._gram.diagonal().add_(self.ridge)

    def encode_rows(self, vectors: Tensor) -> Codes:
        """Solve each row, in float64 on the CPU."""
        targets = (vectors.double() - self.b_dec) @ self._atoms.T
        codes = non_negative_codes(targets.detach().cpu(), self._gram, self.k)
        return to_codes(codes.to(vectors.device))

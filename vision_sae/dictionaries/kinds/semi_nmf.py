"""Semi-non-negative matrix factorisation (Ding, Li & Jordan 2008), for vectors of any sign.

Letters as in the paper, with one site vector per column: A (D, N) ~ Z Y, where Y (F, N) >= 0 are
the codes and the columns of Z (D, F) are the features' directions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from vision_sae.dictionaries.architectures import ARCHITECTURES, Architecture, Fitting
from vision_sae.dictionaries.kinds.kmeans import cluster
from vision_sae.dictionaries.nnls import NonNegativeAtoms
from vision_sae.dictionaries.sample import SAMPLE_ROWS, sample
from vision_sae.errors import InvalidInputError

_COLUMNS = 4096
"""Site vectors updated together, which bounds the memory of temporary tensors."""


class Factors(NamedTuple):
    """One state of a factorisation."""

    z: Float[Tensor, "D F"]
    """Directions."""
    y: Float[Tensor, "F N"]
    """Codes, >= 0."""
    objective: float
    """``|A - Z Y|^2``."""


def _directions(a: Tensor, y: Tensor, support: Tensor | None) -> Tensor:
    """The Z that is best for Y: ``A Y' (Y Y')^-1``, zero outside a ``support`` (D, F)."""
    gram = torch.zeros(len(y), len(y), dtype=torch.float64)
    target = torch.zeros(len(a), len(y), dtype=torch.float64)
    for some_a, some_y in zip(a.split(_COLUMNS, 1), y.split(_COLUMNS, 1), strict=True):
        gram += some_y @ some_y.T
        target += some_a @ some_y.T
    # Least squares, because features that never fire make Y Y' singular.
    if support is None:
        whole: Tensor = torch.linalg.lstsq(gram, target.T).solution
        return whole.T.to(a.dtype)
    z = torch.zeros_like(target)
    for d, allowed in enumerate(support):
        restricted = gram[allowed][:, allowed]
        z[d, allowed] = torch.linalg.lstsq(restricted, target[d, allowed, None]).solution[:, 0]
    return z.to(a.dtype)


def _updated(a: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """The next Y: ``Y * sqrt(((Z'A)+ + (Z'Z)- Y) / ((Z'A)- + (Z'Z)+ Y))``."""
    gram = z.T @ z
    parts = []
    for some_a, some_y in zip(a.split(_COLUMNS, 1), y.split(_COLUMNS, 1), strict=True):
        along = z.T @ some_a
        up = along.clamp(min=0) + (-gram).clamp(min=0) @ some_y
        down = (-along).clamp(min=0) + gram.clamp(min=0) @ some_y
        parts.append(some_y * (up / down.clamp_min(torch.finfo(a.dtype).tiny)).sqrt())
    return torch.cat(parts, dim=1)


def factorisations(
    a: Float[Tensor, "D N"], y: Float[Tensor, "F N"], support: Bool[Tensor, "D F"] | None = None
) -> Iterator[Factors]:
    """The endless states of the alternation from codes ``y`` on; their objective never rises.

    The first state has the best Z for ``y``; each further state updates Y, then Z. Entries of Z
    outside ``support`` stay zero.
    """
    while True:
        z = _directions(a, y, support)
        error = sum(
            float((some_a - z @ some_y).double().square().sum())
            for some_a, some_y in zip(a.split(_COLUMNS, 1), y.split(_COLUMNS, 1), strict=True)
        )
        yield Factors(z, y, error)
        y = _updated(a, y, z)


def _settled(
    a: Tensor, y: Tensor, support: Tensor | None, iterations: int, tolerance: float
) -> Factors:
    """The state after which the objective falls by less than ``tolerance`` of itself, or the state
    after the last of ``iterations``."""
    states = factorisations(a, y, support)
    state = next(states)
    for _ in range(iterations):
        before, state = state.objective, next(states)
        if before - state.objective <= tolerance * before:  # 0 when there is no error left
            break
    return state


class SemiNmf(NonNegativeAtoms):
    """``x - mean ~ f W`` with f >= 0 and directions of any sign; the bias is the mean.

    Encoding solves for the best non-negative codes. Huge codes would be possible where directions
    cancel each other; a small ridge prevents them. Without k, most features fire on most vectors.
    """

    architecture = "semi_nmf"
    ridge = 1e-3

    @classmethod
    def fit(
        cls,
        batches: Iterable[Tensor],
        *,
        width: int,
        k: int | None = None,
        nonzeros: int | None = None,
        rows: int = SAMPLE_ROWS,
        iterations: int = 200,
        tolerance: float = 1e-4,
        seed: int = 0,
    ) -> Self:
        """Factorise a sample of ``rows`` rows of batches (N, D), in one pass over them; memory
        O(rows * (D + width)).

        ``k`` is the largest number of features that fire in a row. ``nonzeros`` is the largest
        number of dimensions of a direction: once the alternation has settled, each direction keeps
        its largest entries, and the alternation continues with these alone. The alternation starts
        from k-means, as the paper advises. It ends after ``iterations``, or when the objective
        falls by less than ``tolerance`` of itself.

        Raises `InvalidInputError` if there are fewer rows than features.
        """
        if nonzeros is not None and nonzeros < 1:
            raise InvalidInputError(
                f"nonzeros is {nonzeros}; give at least one dimension, or none to keep all",
                field="nonzeros",
            )
        vectors = sample(batches, rows, seed=seed)
        mean = vectors.double().mean(0).float()
        _, labels = cluster(vectors - mean, width, seed=seed)
        a = (vectors - mean).T.contiguous()
        # Membership + 0.2 in the paper; with many clusters that would drown the membership.
        y = F.one_hot(labels, width).T.to(a.dtype) + 0.2 / width
        state = _settled(a, y, None, iterations, tolerance)
        if nonzeros is not None and nonzeros < len(a):
            largest = state.z.abs().topk(nonzeros, dim=0).indices
            support = torch.zeros(state.z.shape, dtype=torch.bool).scatter_(0, largest, True)
            state = _settled(a, state.y, support, iterations, tolerance)
        return cls(w_dec=F.normalize(state.z.T), b_dec=mean, k=k)


def _fit(batches: Iterable[Tensor], wanted: Fitting) -> SemiNmf:
    width, rows = wanted.features, wanted.rows
    return SemiNmf.fit(batches, width=width, k=wanted.k, rows=rows, seed=wanted.seed)


ARCHITECTURES.register(Architecture(SemiNmf, fit=_fit))

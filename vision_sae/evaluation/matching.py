"""Which features of one dictionary another has too, always beside what random directions score."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from vision_sae.errors import InvalidInputError

HUNGARIAN_WIDTH = 4096
"""Beyond this width an assignment takes too long, and each feature is given its nearest instead."""
_BLOCK = 1024


class Pairs(NamedTuple):
    """Features of one dictionary and their partners in another."""

    left: Tensor
    """Features of the first dictionary (M), int64, ascending."""
    right: Tensor
    """The partner of each in the second dictionary (M), int64."""
    cosines: Tensor
    """Cosine of their decoder rows (M), float32."""

    @property
    def mean(self) -> float:
        """Mean cosine of the pairs."""
        return float(self.cosines.double().mean())


class Matching(NamedTuple):
    """How well two dictionaries agree. A mean means nothing without its floor."""

    pairs: Pairs
    one_to_one: bool
    """Whether no feature of the second dictionary is given twice (Hungarian assignment)."""
    floor: float
    """Mean cosine that random directions of the same two shapes reach by the same method."""


def assign(a: Tensor, b: Tensor) -> Pairs:
    """The one-to-one pairs of rows of ``a`` (Fa, D) and ``b`` (Fb, D) of largest total cosine.

    M is the smaller width. The assignment (Kuhn 1955, by scipy) holds all Fa x Fb cosines.
    """
    cosines = F.normalize(a.float(), dim=1) @ F.normalize(b.float(), dim=1).T
    left, right = map(torch.from_numpy, linear_sum_assignment(cosines.numpy(), maximize=True))
    return Pairs(left, right, cosines[left, right])


def nearest(a: Tensor, b: Tensor, *, block: int = _BLOCK) -> Pairs:
    """The row of ``b`` (Fb, D) of largest cosine to each row of ``a`` (Fa, D); M = Fa.

    Several rows may share one. Their mean is the mean maximum cosine similarity (MMCS, Sharkey et
    al. 2022). Memory is bounded by ``block`` x Fb.
    """
    unit_a, unit_b = F.normalize(a.float(), dim=1), F.normalize(b.float(), dim=1)
    found = [torch.max(rows @ unit_b.T, dim=1) for rows in unit_a.split(block)]
    right = torch.cat([best.indices for best in found])
    return Pairs(torch.arange(len(a)), right, torch.cat([best.values for best in found]))


def match(a: Tensor, b: Tensor, *, seed: int = 0) -> Matching:
    """Match the decoders ``a`` (Fa, D) and ``b`` (Fb, D) of two dictionaries.

    One to one where both are at most `HUNGARIAN_WIDTH` wide, else each feature of ``a`` with its
    nearest. ``seed`` draws the random directions of the floor. Raises `InvalidInputError` when the
    dictionaries are of different sites' lengths.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or not len(a) or not len(b):
        raise InvalidInputError(
            f"decoders of shapes {tuple(a.shape)} and {tuple(b.shape)} cannot be matched; give two "
            "dictionaries of sites of the same length",
            field="dictionary",
        )
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise InvalidInputError(
            "a decoder holds NaN or infinity; train the dictionary again", field="dictionary"
        )
    one_to_one = max(len(a), len(b)) <= HUNGARIAN_WIDTH
    method = assign if one_to_one else nearest
    generator = torch.Generator().manual_seed(seed)
    random = [torch.randn(rows.shape, generator=generator) for rows in (a, b)]
    return Matching(method(a, b), one_to_one, method(*random).mean)

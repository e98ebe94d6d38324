"""Which features of one dictionary another has too, always beside what is reached by chance."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from vision_sae.errors import InvalidInputError

HUNGARIAN_WIDTH = 4096
"""Beyond this width an assignment takes too long, and each feature is given its nearest alone."""
_BLOCK = 512
_LEAST = -1.0
"""The least that a cosine or a correlation can be."""


class Similarities(NamedTuple):
    """How alike the features of two dictionaries are, by any measure."""

    width: int
    """Features of the first dictionary (F)."""
    of: Callable[[Tensor], Tensor]
    """Some features of the first (n) -> their similarities to all of the second (n, F'), minus
    infinity where there is nothing to compare."""

    def held(self) -> Similarities:
        """The same, computed once, in blocks: all F x F' of them, float32."""
        blocks = torch.arange(self.width).split(_BLOCK)
        whole = torch.cat([self.of(features).float() for features in blocks])
        return Similarities(self.width, whole.__getitem__)


class Pairs(NamedTuple):
    """Features of one dictionary and their partners in another."""

    left: Tensor
    """Features of the first dictionary (M), int64, ascending."""
    right: Tensor
    """The partner of each in the second dictionary (M), int64."""
    similarities: Tensor
    """How alike they are (M), float32."""

    @property
    def mean(self) -> float:
        """Mean similarity of the pairs; NaN of none."""
        return float(self.similarities.double().mean())


class Matching(NamedTuple):
    """How well two dictionaries agree. A mean means nothing without its floor."""

    pairs: Pairs
    one_to_one: bool
    """Whether no feature of the second dictionary is given twice (Hungarian assignment)."""
    floor: float
    """Mean cosine that random directions of the same two shapes reach by the same method."""


def cosines(a: Tensor, b: Tensor) -> Similarities:
    """Of the rows of ``a`` (Fa, D) and ``b`` (Fb, D)."""
    unit_a, unit_b = F.normalize(a.float(), dim=1), F.normalize(b.float(), dim=1)
    return Similarities(len(a), lambda features: unit_a[features] @ unit_b.T)


def assign(similarities: Similarities) -> Pairs:
    """The one-to-one pairs of largest total similarity; at most as many as the smaller width.

    The assignment (Kuhn 1955, by scipy) holds all F x F' similarities.
    """
    whole = similarities.of(torch.arange(similarities.width)).float()
    comparable = torch.isfinite(whole)
    possible = whole.masked_fill(~comparable, _LEAST)
    left, right = map(torch.from_numpy, linear_sum_assignment(possible.numpy(), maximize=True))
    kept = comparable[left, right]
    left, right = left[kept], right[kept]
    return Pairs(left, right, whole[left, right])


def nearest(similarities: Similarities, *, block: int = _BLOCK) -> Pairs:
    """The most similar feature of the second dictionary to each of the first that has one.

    Several may share one. The mean of cosines is the mean maximum cosine similarity (MMCS, Sharkey
    et al. 2022). Memory is bounded by ``block`` x F'.
    """
    values = torch.full((similarities.width,), -torch.inf)
    indices = torch.zeros(similarities.width, dtype=torch.int64)
    for features in torch.arange(similarities.width).split(block):
        alike = similarities.of(features).float()
        if alike.numel():  # the second may have no features
            values[features], indices[features] = alike.max(1)
    left = torch.isfinite(values).nonzero()[:, 0]
    return Pairs(left, indices[left], values[left])


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
    return Matching(method(cosines(a, b)), one_to_one, method(cosines(*random)).mean)

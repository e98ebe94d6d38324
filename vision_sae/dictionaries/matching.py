"""Matching the features of two dictionaries, with the similarity that chance reaches."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from vision_sae import devices
from vision_sae.errors import InvalidInputError

HUNGARIAN_WIDTH = 4096
"""Widest dictionaries for a one-to-one assignment; wider ones take too long."""
_BLOCK = 512
_LEAST = -1.0
"""The lowest possible cosine or correlation."""


class Similarities(NamedTuple):
    """Similarities between the features of two dictionaries, by any measure."""

    width: int
    """Number F of features of the first dictionary."""
    of: Callable[[Tensor], Tensor]
    """Numbers (n) of features of the first dictionary -> their similarities (n, F') to all features
    of the second. A pair that cannot be compared has minus infinity."""

    def computed(self) -> Similarities:
        """The same similarities, all F x F' computed in blocks and kept in memory, float32."""
        blocks = torch.arange(self.width).split(_BLOCK)
        whole = torch.cat([self.of(features).float() for features in blocks])
        return Similarities(self.width, whole.__getitem__)


class Pairs(NamedTuple):
    """Features of one dictionary, and their partners in another."""

    left: Int64[Tensor, " M"]
    """Features of the first dictionary, ascending."""
    right: Int64[Tensor, " M"]
    """The partners in the second dictionary."""
    similarities: Float32[Tensor, " M"]
    """The similarity of each pair."""

    @property
    def mean(self) -> float:
        """Mean similarity of the pairs; NaN without pairs."""
        return float(self.similarities.double().mean())


class Matching(NamedTuple):
    """Agreement of two dictionaries. The pairs' mean similarity is meaningful beside the floor."""

    pairs: Pairs
    one_to_one: bool
    """Whether each feature has at most one partner (Hungarian assignment)."""
    floor: float
    """Mean cosine of random directions of the same shapes, matched by the same method."""


def cosines(
    a: Float[Tensor, "Fa D"], b: Float[Tensor, "Fb D"], *, device: str = "auto"
) -> Similarities:
    """Cosines between the rows of ``a`` and the rows of ``b``, computed on ``device``
    (`devices.chosen`) and returned in host memory."""
    there = devices.chosen(device)
    unit_a, unit_b = (F.normalize(rows.to(there).float(), dim=1) for rows in (a, b))
    return Similarities(len(a), lambda features: (unit_a[features.to(there)] @ unit_b.T).cpu())


def assign(similarities: Similarities) -> Pairs:
    """The one-to-one pairs with the largest total similarity, at most as many as the smaller width.

    The assignment (Kuhn 1955, by scipy) needs all F x F' similarities in memory.
    """
    whole = similarities.of(torch.arange(similarities.width)).float()
    comparable = torch.isfinite(whole)
    possible = whole.masked_fill(~comparable, _LEAST)
    left, right = map(torch.from_numpy, linear_sum_assignment(possible.numpy(), maximize=True))
    kept = comparable[left, right]
    left, right = left[kept], right[kept]
    return Pairs(left, right, whole[left, right])


def nearest(similarities: Similarities, *, block: int = _BLOCK) -> Pairs:
    """Each feature of the first dictionary with the most similar feature of the second.

    Several features may have the same partner; a feature without comparable partners is left out.
    For cosines, the mean is the mean maximum cosine similarity (MMCS, Sharkey et al. 2022). Memory
    is bounded by ``block`` x F'.
    """
    values = torch.full((similarities.width,), -torch.inf)
    indices = torch.zeros(similarities.width, dtype=torch.int64)
    for features in torch.arange(similarities.width).split(block):
        part = similarities.of(features).float()
        if part.numel():  # the second dictionary may have no features
            values[features], indices[features] = part.max(1)
    left = torch.isfinite(values).nonzero()[:, 0]
    return Pairs(left, indices[left], values[left])


def match(a: Float[Tensor, "*shape_a"], b: Float[Tensor, "*shape_b"], *, seed: int = 0) -> Matching:
    """Match the decoders ``a`` (Fa, D) and ``b`` (Fb, D) of two dictionaries by cosine.

    The matching is one to one if both have at most `HUNGARIAN_WIDTH` features. Otherwise each
    feature of ``a`` gets the nearest feature of ``b``. ``seed`` determines the random directions of
    the floor. Raises `InvalidInputError` for decoders of different lengths D, without features, or
    with values that are not finite.
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

"""Soft weighted pointwise mutual information between exemplars and words (Oikarinen and Weng 2023).

``S[i, d]`` is the probability that exemplar i shows word d, with the strongest exemplar first, and
p_i is the prior probability that exemplar i belongs to the unit::

    p_i = 0.998 - 0.028 * i / n                                       i = 0 ... n - 1
    log p(d | E) = sum_i log(1 + p_i * (S[i, d] - 1) + 1e-7)
    pmi(d; E) = log p(d | E) - log p(d)

An unrelated exemplar lowers the value of a word by at most ``-log(1 - p_i)``, and the weakest
exemplar by the least.

p(d) is the expectation of p(d | E) over exemplars drawn from the data without regard to a unit.
The draws are independent, so p(d) is the product of the factors' expectations: the same formula
with the mean of S over the data in place of S. This prior holds for any number of exemplars and
depends on no unit. The usual estimate, the average of p(d | E) over the labelled units, depends on
the choice of units.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

TEMPERATURE = 15.0
"""The factor of similarities before the softmax over the words (an inverse temperature).

The value is for centred cosines (see `vision_sae.descriptions.words.prior`) of any model. On
planted worlds with hubs, a gap between pictures and texts, noise and impure exemplars, 10 to 40 did
equally well at single words, better than 5 and better than cosines without centring. Phrases were
best at 14: the search missed phrases at 7, and preferred phrases to correct plain words at 20.
"""
_FIRST, _FALL, _FLOOR = 0.998, 0.028, 1e-7
_TOGETHER = 10
"""Factors that are multiplied before their logarithm is taken."""
_ELEMENTS = 2**21
"""The most probabilities in one block of `top_words`."""


def membership(count: int) -> Float[Tensor, "n 1"]:
    """p_i of ``count`` exemplars, strongest first."""
    return (_FIRST - _FALL * torch.arange(count) / count)[:, None]


def log_likelihood(posteriors: Float[Tensor, "*any n W"]) -> Float[Tensor, "*any W"]:
    """log p(d | E) in nats, from exemplars' posteriors S, strongest exemplar first."""
    p = membership(posteriors.shape[-2])
    return _log_product(posteriors * p + (1 + _FLOOR - p))


def _log_product(factors: Tensor) -> Tensor:
    """Log of the product of factors (..., n, W) -> (..., W), with one logarithm for a few factors.

    No factor is below `_FLOOR` + 1 - `_FIRST`, so that the product of a few does not underflow.
    """
    count = factors.shape[-2]
    whole = count - count % _TOGETHER
    groups = factors[..., :whole, :].unflatten(-2, (whole // _TOGETHER, _TOGETHER))
    logs: Tensor = groups.prod(-2).log().sum(-2)
    return logs + factors[..., whole:, :].prod(-2).log()


def log_prior(mean_posterior: Float[Tensor, W], count: int) -> Float[Tensor, W]:
    """log p(d) in nats for ``count`` exemplars, from the mean of S over the data."""
    return log_likelihood(mean_posterior.expand(count, -1))


def soft_wpmi(
    posteriors: Float[Tensor, "*any n W"], mean_posterior: Float[Tensor, W]
) -> Float[Tensor, "*any W"]:
    """pmi(d; E) in nats, from S of the exemplars and the mean of S over the data."""
    return log_likelihood(posteriors) - log_prior(mean_posterior, posteriors.shape[-2])


def top_words(
    similarities: Float[np.ndarray, "N W"],
    exemplars: Int64[np.ndarray, "U n"],
    *,
    count: int = 10,
    temperature: float = TEMPERATURE,
) -> tuple[Int64[np.ndarray, "U count"], Float32[np.ndarray, "U count"]]:
    """The ``count`` best words of each unit over a probe set of whole pictures, and their pmi.

    ``similarities`` of pictures and words are centred here by word. ``exemplars`` are the numbers
    of each unit's pictures, strongest first. The words are their columns, best first. No array
    grows with both the units and the words.
    """
    cosines = torch.from_numpy(similarities)
    posteriors = torch.softmax(temperature * (cosines - cosines.mean(0)), dim=1)
    mean = posteriors.mean(0)
    number, n = exemplars.shape
    units = max(1, _ELEMENTS // (n * len(mean)))
    p, prior = membership(n), log_prior(mean, n)
    # All results are written in place: an allocation between the large buffers of a turn would
    # keep the allocator from reusing these buffers.
    factors = torch.empty(units * n, len(mean))
    indices = torch.empty(number, count, dtype=torch.int64)
    values = torch.empty(number, count)
    for start in range(0, number, units):
        rows = slice(start, start + units)
        chosen = torch.from_numpy(exemplars[rows]).flatten()
        shown = torch.index_select(posteriors, 0, chosen, out=factors[: len(chosen)])
        of_units = shown.unflatten(0, (-1, n)).mul_(p).add_(1 + _FLOOR - p)
        best = torch.topk(_log_product(of_units) - prior, count, dim=1)
        indices[rows], values[rows] = best.indices, best.values
    return indices.numpy(), values.numpy()

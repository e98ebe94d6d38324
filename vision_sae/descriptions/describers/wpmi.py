"""Soft weighted pointwise mutual information between exemplars and words (Oikarinen and Weng 2023).

With ``S[i, d]``, the probability that word d is the one that exemplar i shows, exemplars counted
from the strongest, and p_i how much exemplar i is believed to belong to the unit at all::

    p_i = 0.998 - 0.028 * i / n                                       i = 0 ... n - 1
    log p(d | E) = sum_i log(1 + p_i * (S[i, d] - 1) + 1e-7)
    pmi(d; E) = log p(d | E) - log p(d)

An exemplar of something else costs a word at most ``log(1 - p_i)``, the weakest the least.

p(d) is the expectation of p(d | E) over exemplars drawn from the data without regard to a unit.
They are independent, so it is the product of the factors' expectations: the same formula with the
mean of S over the data in place of S. It holds for any number of exemplars and depends on no unit;
averaging p(d | E) over the units that happen to be labelled, which is usual, does.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

TEMPERATURE = 15.0
"""What similarities are multiplied by before the softmax over the words.

It is for cosines that are centred (see `vision_sae.descriptions.describers.prior`), whatever the
model. On planted worlds with hubs, a gap between pictures and texts, noise and impure exemplars, 10
to 40 did equally well at single words, better than 5 and better than cosines that are not centred;
phrases were found best at 14: at 7 they were missed, at 20 preferred to the plain words they ought
to be.
"""
_FIRST, _FALL, _FLOOR = 0.998, 0.028, 1e-7
_TOGETHER = 10
"""Factors that are multiplied before their logarithm is taken."""
_ELEMENTS = 2**21
"""Probabilities that `top_words` looks at at a time."""


def beliefs(count: int) -> Tensor:
    """p_i of ``count`` exemplars, strongest first (count, 1)."""
    return (_FIRST - _FALL * torch.arange(count) / count)[:, None]


def log_likelihood(posteriors: Tensor) -> Tensor:
    """log p(d | E) (..., W) of exemplars' posteriors S (..., n, W), strongest first; in nats."""
    p = beliefs(posteriors.shape[-2])
    return _log_product(posteriors * p + (1 + _FLOOR - p))


def _log_product(factors: Tensor) -> Tensor:
    """Log of the product of factors (..., n, W) -> (..., W): of a few at a time the product is a
    normal number, none being below `_FLOOR` + 1 - `_FIRST`, and one logarithm does for all."""
    count = factors.shape[-2]
    whole = count - count % _TOGETHER
    groups = factors[..., :whole, :].unflatten(-2, (whole // _TOGETHER, _TOGETHER))
    logs: Tensor = groups.prod(-2).log().sum(-2)
    return logs + factors[..., whole:, :].prod(-2).log()


def log_prior(mean_posterior: Tensor, count: int) -> Tensor:
    """log p(d) (W) of ``count`` exemplars, from the mean of S over the data (W); in nats."""
    return log_likelihood(mean_posterior.expand(count, -1))


def soft_wpmi(posteriors: Tensor, mean_posterior: Tensor) -> Tensor:
    """pmi(d; E) (..., W) in nats, from S of the exemplars (..., n, W) and of the data (W)."""
    return log_likelihood(posteriors) - log_prior(mean_posterior, posteriors.shape[-2])


def top_words(
    similarities: NDArray[np.float32],
    exemplars: NDArray[np.int64],
    *,
    count: int = 10,
    temperature: float = TEMPERATURE,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The best words of each unit over a probe set of whole pictures, and their pmi.

    ``similarities`` (N, W) of pictures and words are centred by word; ``exemplars`` (U, n) are the
    numbers of each unit's pictures, strongest first. Returns two arrays (U, count), best first.
    Beside (N, W) no array grows with both the units and the words.
    """
    given = torch.from_numpy(similarities)
    posteriors = torch.softmax(temperature * (given - given.mean(0)), dim=1)
    mean = posteriors.mean(0)
    number, n = exemplars.shape
    units = max(1, _ELEMENTS // (n * len(mean)))
    p, prior = beliefs(n), log_prior(mean, n)
    # Everything is written in place: results made between the large buffers of each turn would
    # keep the allocator from using these again.
    factors = torch.empty(units * n, len(mean))
    indices = torch.empty(number, count, dtype=torch.int64)
    values = torch.empty(number, count)
    for start in range(0, number, units):
        rows = slice(start, start + units)
        chosen = torch.from_numpy(exemplars[rows]).flatten()
        shown = torch.index_select(posteriors, 0, chosen, out=factors[: len(chosen)])
        of_units = shown.unflatten(0, (-1, n)).mul_(p).add_(1 + _FLOOR - p)
        found = torch.topk(_log_product(of_units) - prior, count, dim=1)
        indices[rows], values[rows] = found.indices, found.values
    return indices.numpy(), values.numpy()

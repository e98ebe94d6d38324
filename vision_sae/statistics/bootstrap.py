"""95 % bootstrap intervals (percentile method), many resamples at a time.

A resample is a row of counts: how often each item was drawn. Statistics that are sums over items
become matrix products of these counts, so a thousand resamples cost little more than one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
_COVERAGE = (0.025, 0.975)

Counts = NDArray[np.float32]
"""The number of times that each of n items was drawn in each of B resamples (B, n)."""
Statistic = Callable[..., NDArray[np.floating[Any]]]
"""A function of the `Counts` (B, n) of each stratum that returns a value for each resample (B)."""


class Interval(NamedTuple):
    """A 95 % confidence interval."""

    lower: float
    upper: float


@lru_cache(maxsize=256)
def _counts(items: int, stratum: int, seed: int) -> Counts:
    random = np.random.default_rng([seed, stratum, items])
    drawn = random.multinomial(items, np.full(items, 1 / items), size=RESAMPLES)
    counts = drawn.astype(np.float32)
    counts.setflags(write=False)
    return counts


def plain(statistic: Statistic, strata: Sequence[int]) -> float:
    """The point estimate: ``statistic`` with every item once; ``strata`` are the numbers of items
    in each stratum, all > 0."""
    return float(statistic(*(np.ones((1, items), dtype=np.float32) for items in strata))[0])


def interval(statistic: Statistic, strata: Sequence[int], seed: int) -> Interval | None:
    """The interval of ``statistic`` over resamples; each stratum is resampled separately.

    Resamples where the statistic is NaN are left out; None when all resamples are NaN or a stratum
    is empty. The same seed draws the same resamples.
    """
    if not all(strata):
        return None
    values = statistic(*(_counts(n, stratum, seed) for stratum, n in enumerate(strata)))
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    lower, upper = np.quantile(values, _COVERAGE)
    return Interval(float(lower), float(upper))

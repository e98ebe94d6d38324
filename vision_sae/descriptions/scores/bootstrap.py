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

from vision_sae.descriptions.protocol import Metric, Negatives, Score

RESAMPLES = 1000
_COVERAGE = (0.025, 0.975)

Counts = NDArray[np.float32]
"""How often each of n items was drawn in each of B resamples (B, n)."""
Statistic = Callable[..., NDArray[np.floating[Any]]]
"""Takes the `Counts` (B, n) of each stratum and gives one value for each resample (B)."""


class Interval(NamedTuple):
    """Where the truth lies with 95 % confidence."""

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
    """``statistic`` of every item once; ``strata`` are the numbers of items, all > 0."""
    return float(statistic(*(np.ones((1, items), dtype=np.float32) for items in strata))[0])


def interval(statistic: Statistic, strata: Sequence[int], seed: int) -> Interval | None:
    """The interval of ``statistic`` over resamples of each stratum by itself.

    Resamples on which it is NaN are left out; None when it is NaN on all, or a stratum is empty.
    The same seed draws the same resamples, whatever was drawn before.
    """
    if not all(strata):
        return None
    values = statistic(*(_counts(n, stratum, seed) for stratum, n in enumerate(strata)))
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    lower, upper = np.quantile(values, _COVERAGE)
    return Interval(float(lower), float(upper))


def scored(
    metric: Metric,
    statistics: Sequence[Statistic],
    strata: Sequence[int],
    seed: int,
    *,
    negatives: Negatives = "",
) -> Score | None:
    """The score whose statistic comes first, with the mean of the others as its control.

    Its ``n`` is the size of the smallest stratum. None when the statistic is undefined (NaN), or a
    stratum is empty.
    """
    if not all(strata):
        return None
    value = plain(statistics[0], strata)
    between = interval(statistics[0], strata, seed)
    if np.isnan(value) or between is None:
        return None
    others = [v for v in (plain(other, strata) for other in statistics[1:]) if not np.isnan(v)]
    control = float(np.mean(others)) if others else None
    return Score(metric, value, min(strata), *between, control, negatives)

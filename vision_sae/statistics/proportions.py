"""Proportions with confidence intervals."""

from __future__ import annotations

import math
from typing import NamedTuple

_Z = 1.959963984540054
"""Standard deviations on either side of the mean that cover 95 % of a normal distribution."""


class Estimate(NamedTuple):
    """An estimate with its 95 % confidence interval."""

    value: float
    lower: float
    upper: float


def wilson(right: float, answers: int) -> Estimate:
    """The share ``right / answers`` with its score interval, which is valid for few answers and for
    shares near 0 and 1. Without answers the share is NaN and the interval is 0 to 1. ``right`` may
    be fractional, as when several people's answers to one question are averaged.

    Source: Wilson, Probable Inference, the Law of Succession, and Statistical Inference, 1927.
    """
    if not answers:
        return Estimate(math.nan, 0.0, 1.0)
    share, spread = right / answers, _Z**2 / answers
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(spread * share * (1 - share) + spread**2 / 4) / (1 + spread)
    return Estimate(share, max(centre - half, 0.0), min(centre + half, 1.0))

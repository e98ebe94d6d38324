"""A score from its statistic: the value, the interval and the control."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vision_sae.descriptions.protocol import Metric, Negatives, Score
from vision_sae.statistics.bootstrap import Statistic, interval, plain


def scored(
    metric: Metric,
    statistics: Sequence[Statistic],
    strata: Sequence[int],
    seed: int,
    *,
    negatives: Negatives = "",
) -> Score | None:
    """The score of the first statistic; the mean of the other statistics is the control.

    ``n`` of the score is the size of the smallest stratum. None when the statistic is undefined
    (NaN), or a stratum is empty.
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

from __future__ import annotations

import numpy as np

from vision_sae.bundles.codes import SparseRows
from vision_sae.bundles.statistics import QUANTILE_LEVELS, statistics

# Feature 0 fires with 5, 3, 1; feature 1 never; feature 2 once with 2.
STATS = statistics(
    SparseRows(
        np.array([0, 3, 3, 4]),
        np.array([7, 1, 4, 0]),
        np.array([5, 3, 1, 2], dtype=np.float16),
    )
)


def test_counts() -> None:
    assert STATS.count.tolist() == [3, 0, 1]


def test_mean_is_over_non_zero_values() -> None:
    assert STATS.mean.tolist() == [3, 0, 2]


def test_standard_deviation_is_over_non_zero_values() -> None:
    # ((5 - 3)^2 + 0 + (1 - 3)^2) / 3 = 8 / 3
    np.testing.assert_allclose(STATS.std, [np.sqrt(8 / 3), 0, 0], rtol=1e-6)


def test_max() -> None:
    assert STATS.max.tolist() == [5, 0, 2]


def test_quantiles_interpolate() -> None:
    # Of 1, 3, 5: the quarter lies half way from 1 to 3.
    at = dict(zip(QUANTILE_LEVELS, STATS.quantiles[0].tolist(), strict=True))
    assert (at[0.0], at[0.25], at[0.5], at[1.0]) == (1, 2, 3, 5)


def test_quantiles_of_a_single_value_are_that_value() -> None:
    assert set(STATS.quantiles[2].tolist()) == {2}


def test_silent_feature_is_all_zero() -> None:
    assert not STATS.quantiles[1].any()

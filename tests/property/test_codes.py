from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from vision_sae.bundles.codes import CodesBuilder, SparseRows, by_feature
from vision_sae.bundles.statistics import QUANTILE_LEVELS, statistics
from vision_sae.dictionaries.protocol import Codes, _to_codes_with_one_wait, to_codes


@st.composite
def dense_codes(draw: st.DrawFn) -> np.ndarray:
    """Activations (patches, F): sparse, with ties, some features and patches silent."""
    patches, width = draw(st.integers(1, 12)), draw(st.integers(1, 8))
    values = st.sampled_from([0.0, 0.0, 0.0, 0.5, 1.0, 1.25, 3.0])
    cells = draw(st.lists(values, min_size=patches * width, max_size=patches * width))
    return np.array(cells, dtype=np.float32).reshape(patches, width)


def sparse(dense: np.ndarray) -> SparseRows:
    builder = CodesBuilder()
    for rows in np.array_split(dense, 2):  # one batch may be empty
        indices = torch.arange(dense.shape[1]).expand(len(rows), -1)
        builder.add(Codes(indices, torch.from_numpy(rows)))
    return builder.by_patch()


@given(dense_codes())
def test_by_patch_holds_the_non_zero_cells(dense: np.ndarray) -> None:
    rows = sparse(dense)
    for patch, expected in enumerate(dense):
        indices, values = rows.row(patch)
        assert indices.tolist() == np.flatnonzero(expected).tolist()
        assert values.tolist() == expected[expected > 0].tolist()


@given(dense_codes())
def test_codes_with_one_wait_are_those_of_the_cpu(dense: np.ndarray) -> None:
    activations = torch.from_numpy(dense)
    for ours, expected in zip(
        _to_codes_with_one_wait(activations), to_codes(activations), strict=True
    ):
        assert torch.equal(ours, expected)


@given(dense_codes())
def test_by_feature_holds_the_columns_strongest_first(dense: np.ndarray) -> None:
    postings = by_feature(sparse(dense), dense.shape[1])
    for feature, column in enumerate(dense.T):
        patches, values = postings.row(feature)
        expected = sorted(np.flatnonzero(column), key=lambda p: (-column[p], p))
        assert patches.tolist() == expected
        assert values.tolist() == column[expected].tolist()


@given(dense_codes())
def test_statistics_equal_numpy_on_the_non_zero_values(dense: np.ndarray) -> None:
    stats = statistics(by_feature(sparse(dense), dense.shape[1]))
    for feature, column in enumerate(dense.T):
        values = column[column > 0]
        assert stats.count[feature] == len(values)
        if len(values) == 0:
            assert stats.mean[feature] == stats.std[feature] == stats.max[feature] == 0
            assert not stats.quantiles[feature].any()
            continue
        np.testing.assert_allclose(stats.mean[feature], values.mean(), rtol=1e-6)
        np.testing.assert_allclose(stats.std[feature], values.std(), rtol=1e-5, atol=1e-7)
        assert stats.max[feature] == values.max()
        quantiles = np.quantile(values.astype(np.float64), QUANTILE_LEVELS)
        np.testing.assert_allclose(stats.quantiles[feature], quantiles, rtol=1e-6)

"""The shortlist chooses what a product in float64 chooses, whatever the numbers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from vision_sae.dictionaries import kernels_shortlist
from vision_sae.dictionaries.kinds.topk import TopKSae
from vision_sae.dictionaries.shortlist import Shortlist, is_available, shortlist_of

pytestmark = pytest.mark.skipif(not is_available(), reason="this CPU lacks AVX2")

EPSILON = 2.0**-23


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pre_activations(vectors: Tensor, w_enc: Tensor, b_enc: Tensor) -> Tensor:
    return vectors.double() @ w_enc.double().T + b_enc.double()


def check(vectors: Tensor, w_enc: Tensor, b_enc: Tensor, k: int) -> None:
    """Each value is its feature's pre-activation, and no larger one is left out."""
    exact = pre_activations(vectors, w_enc, b_enc)
    features, values = Shortlist(w_enc, b_enc).largest(vectors, k)
    # What float32 sums of these products can lose.
    lost = vectors.double().abs() @ w_enc.double().abs().T + b_enc.abs()
    lost = (vectors.shape[1] + 2) * EPSILON * lost
    of_features, lost_of_features = exact.gather(1, features), lost.gather(1, features)
    fires = values > 0
    assert ((of_features - values).abs() <= lost_of_features)[fires].all()
    largest = exact.relu().topk(k, dim=1).values
    ours = values.double().sort(dim=1, descending=True).values
    assert ((ours - largest).abs() <= lost.max(dim=1, keepdim=True).values).all()
    for row, used in zip(features, fires, strict=True):
        assert (row[used].diff() > 0).all()
        assert not row[~used].any()


@pytest.mark.parametrize("k", [1, 7, 64])
@pytest.mark.parametrize(("dim", "width"), [(1, 1), (5, 33), (384, 2000), (768, 100)])
@pytest.mark.parametrize("rows", [1, 13, 500])
def test_the_largest_pre_activations_are_chosen(rows: int, dim: int, width: int, k: int) -> None:
    w_enc, b_enc = numbers(width, dim, seed=1), numbers(width, seed=2)
    check(numbers(rows, dim), w_enc, b_enc, min(k, width))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    powers=st.lists(st.integers(-24, 12), min_size=3, max_size=3),
    spread=st.floats(0, 8),
)
def test_any_scales_and_spreads_are_exact(seed: int, powers: list[int], spread: float) -> None:
    """Rows, features and biases of very different sizes, and vectors with few large entries."""
    scales = [10.0**power for power in powers]
    vectors = numbers(20, 24, seed=seed) * torch.exp(spread * numbers(20, 24, seed=seed + 1))
    w_enc = numbers(90, 24, seed=seed + 2) * torch.exp(numbers(90, 1, seed=seed + 3) * spread / 4)
    b_enc = numbers(90, seed=seed + 4)
    check(vectors * scales[0], w_enc * scales[1], b_enc * scales[2], 5)


def test_of_equal_pre_activations_the_lower_features_are_chosen() -> None:
    w_enc = torch.ones(50, 4)
    w_enc[7], w_enc[40] = 2, 0
    features, values = Shortlist(w_enc, torch.zeros(50)).largest(torch.ones(1, 4), 3)
    assert features.tolist() == [[0, 1, 7]]
    assert values.tolist() == [[4, 4, 8]]


def test_more_equal_features_than_a_list_has_places() -> None:
    w_enc = torch.ones(5000, 4)
    features, values = Shortlist(w_enc, torch.zeros(5000)).largest(torch.ones(2, 4), 3)
    assert features.tolist() == [[0, 1, 2]] * 2
    assert values.tolist() == [[4, 4, 4]] * 2


def test_a_row_without_positive_pre_activations_uses_no_slot() -> None:
    w_enc, b_enc = numbers(40, 6).abs(), torch.full((40,), -1.0)
    vectors = torch.stack([torch.zeros(6), -torch.ones(6), torch.full((6,), 100.0)])
    features, values = Shortlist(w_enc, b_enc).largest(vectors, 4)
    assert values[:2].tolist() == [[0] * 4] * 2
    assert features[:2].tolist() == [[0] * 4] * 2
    assert (values[2] > 0).all()


@pytest.mark.parametrize("strange", [1e-42, 1e-20, 1e20])
def test_numbers_beyond_the_range_take_the_product(strange: float) -> None:
    vectors, w_enc, b_enc = numbers(4, 8), numbers(30, 8, seed=1), numbers(30, seed=2)
    large = vectors.clone()
    large[1] *= strange
    check(large, w_enc, b_enc, 3)
    w_enc[5] *= strange
    check(vectors, w_enc, b_enc, 3)


@pytest.mark.parametrize("strange", [torch.nan, torch.inf])
def test_what_is_no_number_stays_visible(strange: float) -> None:
    vectors, w_enc, b_enc = numbers(4, 8), numbers(30, 8, seed=1), numbers(30, seed=2)
    plain = Shortlist(w_enc, b_enc).largest(vectors, 3)
    vectors[1, 0] = strange
    features, values = Shortlist(w_enc, b_enc).largest(vectors, 3)
    assert not values[1].isfinite().any()
    assert torch.equal(values[[0, 2, 3]], plain[1][[0, 2, 3]])
    assert torch.equal(features[[0, 2, 3]], plain[0][[0, 2, 3]])
    w_enc[5, 0] = torch.nan
    features, values = Shortlist(w_enc, b_enc).largest(vectors, 3)
    assert (features[[0, 2, 3]] == 5).any(1).all()
    assert values[features == 5].isnan().all()


def test_the_bounds_hold() -> None:
    """Every listed feature lies between its bounds, and no other is among the largest."""
    vectors, w_enc, b_enc, k = numbers(300, 384), numbers(3000, 384, seed=1), numbers(3000), 32
    shortlist = Shortlist(w_enc, b_enc)
    lists, norms = shortlist.lists(vectors.numpy(), k)
    torch.testing.assert_close(torch.from_numpy(norms), vectors.norm(dim=1), rtol=1e-3, atol=0)
    exact = pre_activations(vectors, w_enc, b_enc).numpy()
    assert (lists.counts >= k).all()
    assert lists.counts.mean() < 1.2 * k  # the bounds are close
    for row, of_row in enumerate(exact):
        listed = lists.features[row, : lists.counts[row]]
        lower = np.zeros(len(listed), dtype=np.float32)
        kernels_shortlist.lower_bounds(row, len(listed), lists, shortlist._rounded, lower)
        assert (lower <= of_row[listed]).all()
        assert (lists.upper[row, : len(listed)] >= of_row[listed]).all()
        kth = np.sort(of_row)[-k]
        assert set(np.flatnonzero(of_row >= kth)) <= set(listed)
        assert lists.least[row] <= kth


def test_a_guess_that_is_too_large_costs_no_feature() -> None:
    """The last rows are so unlike the first that what was learnt of these is wrong of those."""
    w_enc, b_enc = numbers(2000, 64, seed=1), torch.zeros(2000)
    alike = w_enc[:1] + 0.01 * numbers(800, 64)
    check(torch.cat([alike, numbers(300, 64, seed=3), alike]), w_enc, b_enc, 16)


def test_weights_that_change_are_rounded_again() -> None:
    w_enc, b_enc = numbers(64, 8), torch.zeros(64)
    shortlist, vectors = Shortlist(w_enc, b_enc), numbers(3, 8, seed=1)
    w_enc[10] = 100 * vectors[0]
    shortlist.refresh()
    assert 10 in shortlist.largest(vectors, 2)[0][0].tolist()


def test_an_autoencoder_encodes_with_it_and_sees_a_change() -> None:
    w_enc, vectors = numbers(2048, 16), numbers(30, 16, seed=1)
    sae = TopKSae(
        k=4, w_enc=w_enc, b_enc=torch.zeros(2048), w_dec=w_enc.clone(), b_dec=numbers(16, seed=2)
    )
    assert shortlist_of(sae, sae.w_enc, sae.b_enc) is shortlist_of(sae, sae.w_enc, sae.b_enc)
    for _ in range(2):
        codes = sae.encode(vectors)
        dense = sae.activate(sae.pre_activations(vectors))
        assert torch.equal(codes.indices, dense.indices)
        torch.testing.assert_close(codes.values, dense.values, rtol=1e-5, atol=1e-5)
        w_enc[77] = 50 * vectors[0]


def test_gradients_take_the_product() -> None:
    w_enc = numbers(2048, 16)
    sae = TopKSae(k=4, w_enc=w_enc, b_enc=torch.zeros(2048), w_dec=w_enc, b_dec=torch.zeros(16))
    vectors = numbers(2, 16).requires_grad_()
    sae.encode(vectors).values.sum().backward()
    assert vectors.grad is not None
    assert (vectors.grad != 0).any(1).all()


_ON_AVX2 = """
import sys, torch
from vision_sae.dictionaries.kernels_shortlist import tile
from vision_sae.dictionaries.shortlist import Shortlist
saved = torch.load(sys.argv[1])
assert tile().lanes == 8
torch.save(Shortlist(saved["w_enc"], saved["b_enc"]).largest(saved["vectors"], 9), sys.argv[2])
"""


@pytest.mark.slow
def test_avx2_chooses_what_avx512_chooses(tmp_path: Path) -> None:
    given_, result = tmp_path / "given.pt", tmp_path / "result.pt"
    saved = {"vectors": numbers(70, 51), "w_enc": numbers(400, 51, seed=1), "b_enc": numbers(400)}
    torch.save(saved, given_)
    limited = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma,+bmi,+popcnt"}
    command = [sys.executable, "-c", _ON_AVX2, str(given_), str(result)]
    subprocess.run(command, check=True, env=os.environ | limited, timeout=200)
    features, values = torch.load(result)
    ours = Shortlist(saved["w_enc"], saved["b_enc"]).largest(saved["vectors"], 9)
    assert torch.equal(features, ours[0])
    torch.testing.assert_close(values, ours[1], rtol=1e-5, atol=1e-5)


def test_no_tile_without_the_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels_shortlist, "_cpu_features", lambda: {"sse4.2"})
    kernels_shortlist.tile.cache_clear()
    try:
        assert not is_available()
        with pytest.raises(RuntimeError, match="AVX2"):
            Shortlist(numbers(3, 2), numbers(3))
    finally:
        kernels_shortlist.tile.cache_clear()

"""Activation and truth: hand-worked figures, and those of scikit-learn, NumPy and SciPy."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
import pytest
from scipy import sparse
from scipy.stats import pearsonr
from sklearn.metrics import average_precision_score, f1_score, jaccard_score

from vision_sae.statistics import association
from vision_sae.statistics.association import (
    auprc,
    base_rate,
    bootstrap_by_source,
    correlation,
    correlation_interval,
    correlations,
    f1,
    firing_threshold,
    iou,
    precision_of_strongest,
    silent_share,
    source_weights,
)


class World(NamedTuple):
    activation: np.ndarray
    truth: np.ndarray
    sources: np.ndarray


def world(seed: int, pictures: int = 400) -> World:
    """A unit of few distinct strengths that fires more often where the label fits."""
    random = np.random.default_rng(seed)
    sources = np.sort(random.integers(0, pictures // 3, pictures)) * 7
    truth = (random.random(pictures) < 0.2).astype(np.float64)
    fires = random.random(pictures) < np.where(truth > 0, 0.6, 0.1)
    return World(fires * random.integers(1, 9, pictures) / 4, truth, sources)


def numbers(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


# Correlation


def test_correlation_by_hand() -> None:
    # Deviations (-1, 0, 1) and (-1, 1, 0): 1 over sqrt 2 sqrt 2.
    assert correlation(numbers(0, 1, 2), numbers(0, 1, 0.5)) == pytest.approx(0.5)


def test_weight_is_how_often_a_picture_counts() -> None:
    activation, truth, _ = world(0, 50)
    weights = np.random.default_rng(1).integers(0, 4, 50)
    repeated = pearsonr(np.repeat(activation, weights), np.repeat(truth, weights)).statistic
    assert correlation(activation, truth, weights) == pytest.approx(repeated)


@pytest.mark.parametrize(
    ("activation", "truth", "weights"),
    [
        (numbers(0.1, 0.1, 0.1), numbers(0, 1, 0), None),
        (numbers(0, 1, 2), numbers(1, 1, 1), None),
        (numbers(0, 1, 2), numbers(1, 1, 0), numbers(1, 1, 0)),
        (numbers(0, 1), numbers(0, 1), numbers(0, 0)),
    ],
)
def test_no_correlation_of_a_constant(
    activation: np.ndarray, truth: np.ndarray, weights: np.ndarray | None
) -> None:
    assert np.isnan(correlation(activation, truth, weights))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("as_truths", [np.asarray, sparse.csr_array, sparse.csc_array])
def test_all_correlations_at_once(as_truths: type, weighted: bool) -> None:
    random = np.random.default_rng(0)
    activations = sparse.random_array((5, 300), density=0.1, rng=random, format="csr")
    truths = (random.random((3, 300)) < 0.3) * random.random((3, 300))
    weights = random.random(300) if weighted else None
    expected = [[correlation(a, t, weights) for t in truths] for a in activations.toarray()]
    found = correlations(activations, as_truths(truths), weights)
    assert found == pytest.approx(np.array(expected), abs=1e-12)
    assert found.dtype == np.float64


def test_all_correlations_of_constants_are_undefined() -> None:
    activations = sparse.csr_array(np.array([[0, 0, 0], [0.1, 0.1, 0.1], [0, 1, 2]]))
    truths = np.array([[0.3, 0.3, 0.3], [0, 0.5, 1]])
    found = correlations(activations, truths, numbers(1, 2, 4))
    assert found == pytest.approx(
        np.array([[np.nan, np.nan], [np.nan, np.nan], [np.nan, 1]]), nan_ok=True
    )


# Ranking


def test_average_precision_by_hand() -> None:
    # Thresholds 3, 2, 0: recall 1/2, 1/2, 1; precision 1, 1/2, 2/4.
    assert auprc(numbers(3, 2, 0, 0), numbers(1, 0, 1, 0)) == pytest.approx(0.5 + 0.5 * 0.5)


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_is_that_of_scikit_learn(seed: int) -> None:
    activation, truth, sources = world(seed)
    weights = source_weights(sources)
    assert auprc(activation, truth) == pytest.approx(average_precision_score(truth, activation))
    assert auprc(activation, truth, weights) == pytest.approx(
        average_precision_score(truth, activation, sample_weight=weights)
    )


def test_average_precision_of_a_unit_that_tells_nothing_is_the_base_rate() -> None:
    truth, weights = numbers(1, 0.5, 0.4, 0), numbers(3, 1, 4, 0)
    assert auprc(np.zeros(4), truth, weights) == pytest.approx(4 / 8)
    assert base_rate(truth, weights) == pytest.approx(4 / 8)


def test_no_average_precision_of_a_label_that_fits_nothing() -> None:
    assert np.isnan(auprc(numbers(1, 0), numbers(0, 0.4)))


# Firing or not


def test_threshold_is_the_median_of_what_fires() -> None:
    assert firing_threshold(numbers(0, 0, 0, 0, 1, 5, 3)) == 3
    assert np.isnan(firing_threshold(np.zeros(3)))


def test_overlap_by_hand() -> None:
    # Above 1: pictures 0 and 1. True: 0, 2 and 3. Both: 0.
    activation, truth = numbers(3, 2, 1, 0), numbers(1, 0, 0.5, 1)
    assert f1(activation, truth, 1) == pytest.approx(2 / 5)
    assert iou(activation, truth, 1) == pytest.approx(1 / 4)


def test_overlap_is_that_of_scikit_learn() -> None:
    activation, truth, sources = world(3)
    threshold, weights = firing_threshold(activation), source_weights(sources)
    fires = activation > threshold
    assert f1(activation, truth, threshold, weights) == pytest.approx(
        f1_score(truth, fires, sample_weight=weights)
    )
    assert iou(activation, truth, threshold, weights) == pytest.approx(
        jaccard_score(truth, fires, sample_weight=weights)
    )


def test_overlap_of_nothing_with_nothing() -> None:
    silent = np.zeros(3)
    assert np.isnan(f1(silent, silent, firing_threshold(silent)))
    assert np.isnan(iou(silent, silent, firing_threshold(silent)))
    assert f1(silent, np.ones(3), firing_threshold(silent)) == 0


def test_strongest_pictures_are_each_of_another_source() -> None:
    # From the strongest: picture 3 (source 5), 1 (source 5 again, left out), 0, 4; 2 is silent.
    activation, truth = numbers(2, 3, 0, 4, 1), numbers(0, 1, 1, 1, 1)
    sources = np.array([8, 5, 6, 5, 9])
    assert precision_of_strongest(activation, truth, sources, 2) == (pytest.approx(1 / 2), 2)
    assert precision_of_strongest(activation, truth, sources) == (pytest.approx(2 / 3), 3)


def test_no_strongest_picture_of_a_silent_unit() -> None:
    share, count = precision_of_strongest(np.zeros(2), np.ones(2), np.arange(2))
    assert np.isnan(share)
    assert count == 0


def test_silent_share_by_hand() -> None:
    # True: 0, 2 and 3; silent among them: 3, of weight 2 in 5.
    activation, truth = numbers(3, 0, 1, 0), numbers(1, 0, 1, 1)
    assert silent_share(activation, truth) == pytest.approx(1 / 3)
    assert silent_share(activation, truth, numbers(2, 9, 1, 2)) == pytest.approx(2 / 5)
    assert np.isnan(silent_share(activation, np.zeros(4)))


# Sources


def test_each_source_weighs_one() -> None:
    assert source_weights(np.array([4, 9, 4, 4, 9])).tolist() == [1 / 3, 1 / 2, 1 / 3, 1 / 3, 1 / 2]


def test_resamples_draw_sources_and_not_pictures() -> None:
    # Whatever is drawn, as many sources are, and pictures of one source weigh the same.
    sources = np.array([0, 1, 1, 2, 2, 2])
    seen = []

    def total(weights: np.ndarray) -> float:
        seen.append(weights)
        return float(weights.sum())

    assert bootstrap_by_source(total, sources, 50) == pytest.approx((3, 3))
    assert len(seen) == 50
    assert all(w[1] == w[2] and w[3] == w[4] == w[5] for w in seen)


def test_interval_of_a_mean_is_that_of_theory() -> None:
    # The mean of n sources has standard error s / sqrt n.
    values = np.random.default_rng(0).normal(size=400)
    lower, upper = bootstrap_by_source(
        lambda w: float(w @ values / w.sum()), np.arange(400), 4000, seed=1
    )
    assert upper - lower == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.05)
    assert (upper + lower) / 2 == pytest.approx(values.mean(), abs=0.01)


def test_undefined_resamples_are_left_out() -> None:
    def often_undefined(weights: np.ndarray) -> float:
        return 2.0 if weights[0] > 0 else float("nan")

    assert bootstrap_by_source(often_undefined, np.arange(4)) == (2, 2)
    assert np.isnan(bootstrap_by_source(lambda _: float("nan"), np.arange(4))).all()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("elements", [association._ELEMENTS, 5000])
def test_fast_intervals_are_the_plain_ones(
    monkeypatch: pytest.MonkeyPatch, elements: int, seed: int
) -> None:
    monkeypatch.setattr(association, "_ELEMENTS", elements)
    activation, truth, sources = world(seed)
    expected = bootstrap_by_source(partial(correlation, activation, truth), sources, 100, seed)
    interval = correlation_interval(activation, truth, sources, seed, 100)
    assert interval == pytest.approx(expected, abs=1e-9)


def test_fast_intervals_of_what_is_undefined() -> None:
    activation, truth, sources = world(0)
    nothing = np.zeros_like(truth)
    assert np.isnan(correlation_interval(activation, nothing, sources)).all()
    assert np.isnan(correlation_interval(nothing, truth, sources)).all()


def test_intervals_repeat_for_their_seed() -> None:
    activation, truth, sources = world(0)
    first = correlation_interval(activation, truth, sources, 3)
    assert first == correlation_interval(activation, truth, sources, 3)
    assert first != correlation_interval(activation, truth, sources, 4)

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.worlds.tiny import identity_sae
from vision_sae.dictionaries.metrics import Metrics, MetricsAccumulator, evaluate
from vision_sae.dictionaries.protocol import Codes
from vision_sae.errors import InvalidInputError

X = torch.tensor([[1.0, 0.0], [3.0, 4.0]])


def codes(indices: list[list[int]], values: list[list[float]]) -> Codes:
    return Codes(torch.tensor(indices), torch.tensor(values))


NOTHING = codes([[0], [0]], [[0.0], [0.0]])


def measure(x: Tensor, x_hat: Tensor, found: Codes = NOTHING, width: int = 4) -> Metrics:
    metrics = MetricsAccumulator(x.shape[1], width)
    metrics.add(x, x_hat, found)
    return metrics.result()


def test_explained_variance_by_hand() -> None:
    # The mean is (2, 2), the variance around it (1 + 4) + (1 + 4) = 10, the error 2^2 = 4.
    x_hat = torch.tensor([[1.0, 0.0], [3.0, 2.0]])
    assert measure(X, x_hat).explained_variance == pytest.approx(1 - 4 / 10)


def test_mse_by_hand() -> None:
    assert measure(X, torch.tensor([[1.0, 0.0], [3.0, 2.0]])).mse == pytest.approx(4 / 4)


def test_cossim_by_hand() -> None:
    # Row 0 is exact: 1. Row 1: (3, 4) . (3, 2) = 17, over the norms 5 and sqrt(13).
    expected = (1 + 17 / (5 * math.sqrt(13))) / 2
    assert measure(X, torch.tensor([[1.0, 0.0], [3.0, 2.0]])).cossim == pytest.approx(expected)


def test_predicting_the_mean_explains_exactly_nothing() -> None:
    assert measure(X, X.mean(0).expand(2, 2)).explained_variance == 0


def test_perfect_reconstruction_explains_everything() -> None:
    assert measure(X, X).explained_variance == 1


def test_a_dimension_of_large_mean_does_not_hide_the_error() -> None:
    # About zero instead of the mean, or with one mean for all dimensions, EV would be close to 1.
    x = torch.tensor([[1000.0, 0.0], [1000.0, 2.0]])
    assert measure(x, torch.tensor([[1000.0, 1.0]]).expand(2, 2)).explained_variance == 0


def test_large_mean_keeps_its_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(1000, 3, generator=generator) + 3000).double()
    x_hat = x + 0.1 * torch.randn(1000, 3, generator=generator)
    direct = 1 - (x - x_hat).square().sum() / (x - x.mean(0)).square().sum()
    assert measure(x, x_hat, codes([[0]], [[0.0]])).explained_variance == pytest.approx(
        float(direct), abs=1e-6
    )


def test_l0_counts_positive_codes() -> None:
    assert measure(X, X, codes([[0, 1], [1, 2]], [[1.0, 0.5], [2.0, 0.0]])).l0 == 1.5


def test_l1_sums_activations() -> None:
    assert measure(X, X, codes([[0, 1], [1, 2]], [[1.0, 0.5], [2.0, 0.0]])).l1 == 1.75


def test_alive_features_fired_at_least_once() -> None:
    # Of four features 0 and 1 fired; 2 is in the codes with activation 0; 3 never appears.
    found = codes([[0, 1], [1, 2]], [[1.0, 0.5], [2.0, 0.0]])
    assert measure(X, X, found).frac_alive == 0.5


def test_dense_features_fire_on_more_than_ten_percent() -> None:
    # 20 rows: feature 0 fires on 2 (exactly 10 %), feature 1 on 3, feature 2 on 15.
    indices = [[0]] * 2 + [[1]] * 3 + [[2]] * 15
    x = torch.randn(20, 2)
    assert measure(x, x, codes(indices, [[1.0]] * 20)).freq_over_10_percent == 2 / 4


@pytest.mark.parametrize("size", [1, 3, 64, 100])
def test_batch_size_does_not_matter(size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(100, 6, generator=generator)
    sae = identity_sae(6, 3)
    assert evaluate(sae, x.split(size)) == pytest.approx(evaluate(sae, [x]), rel=1e-12)


def test_evaluate_of_the_positive_half_of_a_symmetric_set() -> None:
    # The neuron basis reproduces the row (3, 0) and turns (-3, 0) into 0: error 9 of variance 18.
    metrics = evaluate(identity_sae(2, 2), [torch.tensor([[3.0, 0.0], [-3.0, 0.0]])])
    assert metrics.explained_variance == pytest.approx(0.5)
    assert (metrics.l0, metrics.frac_alive, metrics.rows) == (0.5, 0.5, 2)


@pytest.mark.parametrize("rows", [1, 7])
def test_equal_rows_have_no_variance_to_explain(rows: int) -> None:
    # 0.1 has no exact binary form: sums of squares alone would leave a variance of about 1e-18.
    x = torch.full((rows, 3), 0.1)
    with pytest.raises(InvalidInputError, match="are equal") as caught:
        evaluate(identity_sae(3, 3), x.split(2))
    assert caught.value.field == "store"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(InvalidInputError, match="NaN or infinity"):
        measure(X, torch.full((2, 2), value))


def test_no_rows_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="no rows"):
        evaluate(identity_sae(3, 3), [torch.zeros(0, 3)])


def test_mean_and_firing_counts_of_everything_added() -> None:
    metrics = MetricsAccumulator(2, 4)
    metrics.add(X, X, codes([[0, 1], [1, 2]], [[1.0, 0.5], [2.0, 0.0]]))
    metrics.add(X + 2, X, codes([[3], [1]], [[1.0], [2.0]]))
    assert metrics.mean.tolist() == [3, 3]
    assert metrics.fired.tolist() == [1, 3, 0, 1]
    assert metrics.rows == 4

from __future__ import annotations

import math

import pytest
import torch

from vision_sae.dictionaries.training.steering import SparsityWeight


def test_twice_the_wanted_features_by_hand() -> None:
    # The steady part grows by the gain 0.5 * pace 0.2 * log 2; with a proportional gain of 3 the
    # weight is 1 + 3 * (2 - 1) = 4 times the steady part.
    weight = SparsityWeight(10, start=0.25, proportional_gain=3)
    weight.follow(torch.tensor(20.0), 0.2)
    assert float(weight.value) == pytest.approx(4 * 0.25 * 2**0.1)


def test_the_wanted_features_change_nothing() -> None:
    weight = SparsityWeight(10, start=0.25, proportional_gain=3)
    weight.follow(torch.tensor(10.0), 0.2)
    assert float(weight.value) == pytest.approx(0.25)


def test_no_feature_at_all_by_hand() -> None:
    # log 0 counts as -1: the steady part shrinks by exp(-0.5 * 0.2); 1 + 3 * (0 - 1) = -2.
    weight = SparsityWeight(10, start=0.25, proportional_gain=3)
    weight.follow(torch.tensor(0.0), 0.2)
    assert float(weight.value) == pytest.approx(-2 * 0.25 * math.exp(-0.1))


def test_a_hundred_times_the_wanted_features_count_as_three_times() -> None:
    # 1 + 3 * 2 = 7, and log 100 counts as 1.
    weight = SparsityWeight(10, start=0.25, proportional_gain=3)
    weight.follow(torch.tensor(1000.0), 0.2)
    assert float(weight.value) == pytest.approx(7 * 0.25 * math.exp(0.1))


def test_a_fixed_weight_is_never_steered() -> None:
    weight = SparsityWeight(10, start=0.25, proportional_gain=3, fixed=0.7)
    weight.follow(torch.tensor(1000.0), 0.2)
    assert float(weight.value) == pytest.approx(0.7)


def test_state_can_be_copied() -> None:
    one, other = (SparsityWeight(10, start=start, proportional_gain=1) for start in (0.25, 0.5))
    one.follow(torch.tensor(20.0), 0.2)
    for name, tensor in other.tensors().items():
        tensor.copy_(one.tensors()[name])
    for weight in (one, other):
        weight.follow(torch.tensor(15.0), 0.2)
    assert torch.equal(one.value, other.value)

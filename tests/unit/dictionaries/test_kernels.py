from __future__ import annotations

import torch

from vision_sae.dictionaries.kernels import (
    add_rows_,
    bag,
    bag_derivative,
    fired_features,
    sampled_dot,
    top_k,
    transpose,
    transposed_bag,
)
from vision_sae.dictionaries.kernels_cpu import Lanes, current_lanes

INDICES = torch.tensor([[0, 2], [2, 3]])
VALUES = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
ROWS = torch.tensor([[1.0, 0.0], [9.0, 9.0], [0.0, 1.0], [5.0, 5.0]])
A = torch.tensor([[1.0, 10.0], [2.0, 20.0]])


def test_bag_by_hand() -> None:
    # 1 * (1, 0) + 2 * (0, 1); 3 * (0, 1) + 0 * (5, 5)
    assert bag(INDICES, VALUES, ROWS).tolist() == [[1, 2], [0, 3]]


def test_sampled_dot_by_hand() -> None:
    # (1, 10) . (1, 0), (1, 10) . (0, 1); (2, 20) . (0, 1), (2, 20) . (5, 5)
    assert sampled_dot(INDICES, A, ROWS).tolist() == [[1, 10], [20, 110]]


def test_the_derivative_of_a_bag_is_the_sampled_dot_in_any_order() -> None:
    assert bag_derivative(INDICES, A, ROWS).tolist() == [[1, 10], [20, 110]]
    assert bag_derivative(INDICES.flip(1), A, ROWS).tolist() == [[10, 1], [110, 20]]


def test_rows_are_added_where_they_collide() -> None:
    target = torch.ones(3, 2)
    add_rows_(target, torch.tensor([2, 0, 2]), torch.tensor([[1.0, 2], [3, 4], [5, 6]]), factor=10)
    assert target.tolist() == [[31, 41], [1, 1], [61, 81]]


def test_a_feature_fires_where_any_of_its_values_is_positive() -> None:
    # Feature 2 fires in row 0, feature 0 in row 0 alone; feature 3 has the value 0.
    indices, values = torch.tensor([[0, 2], [0, 3]]), torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    assert fired_features(indices, values, 5).tolist() == [True, False, True, False, False]


def test_transposed_bag_by_hand() -> None:
    # Feature 0: 1 * A0. Feature 1: unused. Feature 2: 2 * A0 + 3 * A1. Feature 3: 0 * A1.
    out = transposed_bag(transpose(INDICES, 4), VALUES, A)
    assert out.tolist() == [[1, 10], [0, 0], [8, 80], [0, 0]]


def test_top_k_by_hand() -> None:
    indices, values = top_k(torch.tensor([[3.0, 1.0, 2.0], [0.0, -1.0, 5.0]]), 2)
    assert indices.tolist() == [[0, 2], [0, 2]]
    assert values.tolist() == [[3, 2], [0, 5]]


def test_a_lane_computes_on_one_thread_and_is_a_single_lane_to_what_it_runs() -> None:
    """Even where torch has work for more: a lane must not wake threads on the cores of others."""
    torch.set_num_threads(2)
    lanes = Lanes(2)

    def work(_first: int, _last: int) -> tuple[int, int]:
        torch.ones(10**6).add_(1)  # large enough to be split
        return torch.get_num_threads(), current_lanes().count

    assert lanes.run(work, 2) == [(1, 1), (1, 1)]
    assert torch.get_num_threads() == 2


def test_lanes_share_everything_out_once() -> None:
    shares = Lanes(3).run(lambda first, last: list(range(first, last)), 10, grain=2)
    assert shares == [[0, 1], [2, 3, 4, 5], [6, 7, 8, 9]]

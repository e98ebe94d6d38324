from __future__ import annotations

import math

import pytest
import torch

from vision_sae.dictionaries import matching
from vision_sae.dictionaries.matching import Similarities, assign, cosines, match, nearest
from vision_sae.errors import InvalidInputError

# Cosines: the first row has 1 and 0 with those of B, the second 0.8 and 0.6.
A = torch.tensor([[1.0, 0.0], [4.0, 3.0]])
B = torch.tensor([[2.0, 0.0], [0.0, 1.0]])


def random_rows(count: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def test_assignment_by_hand() -> None:
    # One to one: 1 + 0.6 beats 0 + 0.8.
    pairs = assign(cosines(A, B))
    assert pairs.right.tolist() == [0, 1]
    assert pairs.similarities.tolist() == pytest.approx([1, 0.6])
    assert pairs.mean == pytest.approx(0.8)


def test_nearest_by_hand() -> None:
    # Both are nearest to the first row of B.
    pairs = nearest(cosines(A, B))
    assert pairs.right.tolist() == [0, 0]
    assert pairs.mean == pytest.approx(0.9)


def test_what_cannot_be_compared_has_no_partner() -> None:
    told = torch.tensor([[0.2, -torch.inf, 0.9], [-torch.inf] * 3, [0.1, 0.3, 0.8]])
    found = Similarities(3, lambda features: told[features])
    assert nearest(found).left.tolist() == [0, 2]
    assert nearest(found).right.tolist() == [2, 2]
    # One to one: 0.9 + 0.3 beats 0.2 + 0.8.
    assert assign(found).left.tolist() == [0, 2]
    assert assign(found).right.tolist() == [2, 1]
    assert assign(found).similarities.tolist() == pytest.approx([0.9, 0.3])


def test_permuted_dictionary_is_recovered_with_its_permutation() -> None:
    rows = random_rows(200, 16)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    found = match(rows[order], 3 * rows)
    assert found.one_to_one
    assert found.pairs.mean == pytest.approx(1)
    assert torch.equal(found.pairs.right, order)


def test_opposite_directions_do_not_match() -> None:
    assert match(torch.eye(1), -torch.eye(1)).pairs.mean == -1


def test_narrower_dictionary_finds_each_of_its_features_in_the_wider() -> None:
    rows = random_rows(30, 8)
    found = match(rows[[20, 3, 7]], rows)
    assert found.pairs.left.tolist() == [0, 1, 2]
    assert found.pairs.right.tolist() == [20, 3, 7]
    assert match(rows, rows[[20, 3, 7]]).pairs.left.tolist() == [3, 7, 20]


def test_random_directions_reach_the_known_floor() -> None:
    # Random directions of 256 features in 64 dimensions agree to 0.34 or so already.
    a, b = random_rows(256, 64, 1), random_rows(256, 64, 2)
    found = match(a, b)
    assert found.floor == pytest.approx(0.34, abs=0.02)
    assert found.pairs.mean == pytest.approx(found.floor, abs=0.01)


def test_floor_is_of_the_same_shapes() -> None:
    # Five directions find better partners among 500 than among five.
    few, many = random_rows(5, 8, 1), random_rows(500, 8, 2)
    assert match(few, many).floor > match(few, few).floor + 0.2
    assert match(many, few).floor > match(few, few).floor + 0.2


def test_floor_repeats_for_its_seed() -> None:
    assert match(A, B, seed=1).floor == match(B, A, seed=1).floor != match(A, B, seed=2).floor


def test_wide_dictionaries_are_matched_to_their_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "HUNGARIAN_WIDTH", 5)
    a, b = random_rows(6, 2, 1), random_rows(5, 2, 2)
    found = match(a, b)
    assert not found.one_to_one
    assert torch.equal(found.pairs.right, nearest(cosines(a, b)).right)
    # The floor is that of the same method: each random direction with its nearest.
    generator = torch.Generator().manual_seed(0)
    random = [torch.randn(rows.shape, generator=generator) for rows in (a, b)]
    assert found.floor == pytest.approx(nearest(cosines(*random)).mean)
    assert found.floor != pytest.approx(assign(cosines(*random)).mean, abs=0.01)


@pytest.mark.parametrize(
    ("a", "b"), [(torch.eye(3), torch.eye(2)), (torch.eye(2)[:0], torch.eye(2))]
)
def test_decoders_that_cannot_be_compared_are_refused(a: torch.Tensor, b: torch.Tensor) -> None:
    with pytest.raises(InvalidInputError, match="cannot be matched"):
        match(a, b)


def test_decoders_that_are_not_finite_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="NaN"):
        match(A, torch.full((2, 2), math.nan))

"""What edits do to vectors, worked out by hand on a dictionary of three features."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vision_sae.dictionaries.kinds.topk import TopKSae
from vision_sae.errors import FeatureNotFoundError, InvalidInputError
from vision_sae.models.grid import PatchGrid
from vision_sae.steering.edits import (
    FeatureEdit,
    When,
    apply_edits,
    check_features,
    constant_addition,
    edited_code,
    patch_weights,
)

D = torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 0.6, 0.8]])
SAE = TopKSae(k=3, w_enc=D.clone(), b_enc=torch.zeros(3), w_dec=D.clone(), b_dec=torch.zeros(4))
# Two patches: the first fires feature 0 with 2; the second features 1 with 3 and 2 with 0.6 * 0.5.
X = torch.tensor([[2.0, 0, 0, 0], [0, 3.0, 0.5, 0]])


def edit(feature: int, operation: Any, value: float = 0.0, **more: Any) -> FeatureEdit:
    return FeatureEdit("sae", feature, operation, value, **more)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (edit(0, "ablate"), [[0.0, 0, 0, 0], [0, 3.0, 0.5, 0]]),
        (edit(0, "scale", 3), [[6.0, 0, 0, 0], [0, 3.0, 0.5, 0]]),
        (edit(0, "clamp", 5), [[5.0, 0, 0, 0], [5.0, 3.0, 0.5, 0]]),
        (edit(2, "add", 10), [[2.0, 0, 6, 8], [0, 3.0, 6.5, 8]]),
        # Feature 2 takes its 0.3 along (0.6, 0.8) away; the error, what no feature explains, stays.
        (edit(2, "ablate"), [[2.0, 0, 0, 0], [0, 3.0, 0.5 - 0.18, -0.24]]),
        (edit(2, "replace", 10), [[0.0, 0, 6, 8], [0, 0, 6, 8]]),
        (edit(1, "add", 1, fires_above=0.0), [[2.0, 0, 0, 0], [0, 4.0, 0.5, 0]]),
        (edit(1, "add", 1, fires_above=3.5), [[2.0, 0, 0, 0], [0, 3.0, 0.5, 0]]),
        (edit(0, "add", 4, weights=torch.tensor([0.5, 0.0])), [[4.0, 0, 0, 0], [0, 3, 0.5, 0]]),
    ],
)
def test_edit_by_hand(change: FeatureEdit, expected: list[list[float]]) -> None:
    torch.testing.assert_close(apply_edits(X, [change], SAE, 0), torch.tensor(expected))


def test_edits_of_one_feature_follow_each_other() -> None:
    twice = [edit(0, "add", 1), edit(0, "scale", 2)]
    assert apply_edits(X, twice, SAE, 0)[0, 0] == 6  # (2 + 1) * 2
    assert apply_edits(X, twice[::-1], SAE, 0)[0, 0] == 5  # 2 * 2 + 1


def test_nothing_to_change_gives_back_the_same_vectors() -> None:
    assert apply_edits(X, [edit(0, "scale", 1)], SAE, 0) is X
    assert apply_edits(X, [edit(0, "ablate", when=When(1, 2))], SAE, 0) is X


def test_additions_need_no_codes_and_equal_those_with() -> None:
    edits = [edit(0, "add", 2), edit(2, "add", -1, weights=torch.tensor([0.0, 1.0]))]
    assert not any(e.reads_site for e in edits)
    torch.testing.assert_close(
        X + constant_addition(edits, SAE, 0, 2), apply_edits(X, edits, SAE, 0)
    )
    assert edit(0, "add", 2, fires_above=0.0).reads_site
    assert edit(0, "clamp", 2).reads_site


def test_steps_and_their_factors() -> None:
    late = When(1, 2, (9.0, 1.0, 0.5))
    assert [late.factor(step) for step in range(4)] == [None, 1.0, 0.5, None]
    always = When(factors=(1.0, 0.5))
    assert [always.factor(step) for step in (0, 1, 7)] == [1.0, 0.5, 0.5]


@pytest.mark.parametrize(
    ("operation", "value", "halfway"),
    [
        # Feature 0 fires with 2 in the first patch: half of the way to what the edit makes of it.
        ("ablate", 0.0, 1.0),
        ("add", 3.0, 3.5),
        ("scale", 3.0, 4.0),
        ("clamp", 5.0, 3.5),
        ("replace", 5.0, 3.5),
    ],
)
def test_a_factor_is_how_strong_an_edit_is(operation: Any, value: float, halfway: float) -> None:
    fading = edit(0, operation, value, when=When(factors=(0.0, 0.5, 1.0)))
    first, second, third = (apply_edits(X, [fading], SAE, step) for step in range(3))
    assert torch.equal(first, X)
    assert second[0, 0] == halfway
    assert torch.equal(third, apply_edits(X, [edit(0, operation, value)], SAE))


def test_of_several_replacements_the_last_remains() -> None:
    both = [edit(0, "replace", 4), edit(2, "replace", 10)]
    torch.testing.assert_close(apply_edits(X, both, SAE), torch.tensor([[0.0, 0, 6, 8]] * 2))


def test_edits_behind_a_replacement_start_from_what_it_left() -> None:
    # The replacement leaves nothing of feature 1, which fired with 3 in the second patch.
    clamped = apply_edits(X, [edit(0, "replace", 4), edit(1, "clamp", 5)], SAE)
    torch.testing.assert_close(clamped, torch.tensor([[4.0, 5, 0, 0]] * 2))
    # Half replaced: half of the 2 is left and half of the 4 has come, and 1 is added.
    half = edit(0, "replace", 4, weights=torch.tensor([0.5, 0.0]))
    assert apply_edits(X, [half, edit(0, "add", 1)], SAE)[0, 0] == 4
    # What was edited before is replaced, too.
    assert apply_edits(X, [edit(1, "add", 7), edit(0, "replace", 4)], SAE)[1].tolist() == [
        4,
        0,
        0,
        0,
    ]


def test_features_that_do_not_exist_are_refused() -> None:
    with pytest.raises(FeatureNotFoundError, match="features 0 to 2, not 3"):
        check_features([edit(3, "ablate")], {"sae": SAE})


def test_vectors_are_not_changed_in_place() -> None:
    before: Tensor = X.clone()
    apply_edits(X, [edit(0, "ablate"), edit(1, "replace", 2)], SAE, 0)
    assert torch.equal(before, X)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (edit(0, "ablate", 9), {0: 0.0, 1: 3.0}),
        (edit(0, "add", 1.5), {0: 3.5, 1: 3.0}),
        (edit(0, "add", -5), {0: 0.0, 1: 3.0}),
        (edit(2, "add", 1), {0: 2.0, 1: 3.0, 2: 1.0}),
        (edit(1, "scale", 0.5), {0: 2.0, 1: 1.5}),
        (edit(1, "clamp", 7), {0: 2.0, 1: 7.0}),
        (edit(2, "replace", 4), {2: 4.0}),
    ],
)
def test_an_edit_of_a_code(change: FeatureEdit, expected: dict[int, float]) -> None:
    code = {0: 2.0, 1: 3.0}
    assert edited_code(code, change) == expected
    assert code == {0: 2.0, 1: 3.0}


def test_weights_have_the_shape_of_the_grid_and_lie_from_0_to_1() -> None:
    grid = PatchGrid(2, 3, 1, 8, 8)
    weights = np.array([[0, 0.25, 0.5], [0.75, 1, 0]], dtype=np.float32)
    assert patch_weights(weights, grid, "w").tolist() == [0, 0.25, 0.5, 0.75, 1, 0]
    for wrong in (weights.T, weights + 0.5, weights - 0.5):
        with pytest.raises(InvalidInputError, match=r"of the shape \(2, 3\)") as refused:
            patch_weights(wrong, grid, "w")
        assert refused.value.field == "w"

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from vision_sae.dictionaries.protocol import Codes
from vision_sae.errors import InvalidInputError
from vision_sae.evaluation.monosemanticity import (
    FeatureMonosemanticity,
    MonosemanticityAccumulator,
    floor,
    max_pooled,
    monosemanticity,
    of_feature,
)

# Images 0 and 2 look the same, 1 is unlike them, 3 is half-way: 45 degrees from all.
E = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])


def of(*activations: float) -> float:
    return float(monosemanticity(torch.tensor(activations)[:, None], E))


def test_by_hand() -> None:
    # Activations 2, 1, 2, 0 scale to 1, 1/2, 1, 0. Pairs: (0, 1) weigh 1/2 and (1, 2) 1/2 with
    # cosine 0, (0, 2) weighs 1 with cosine 1. (0 + 0 + 1) / 2.
    assert of(2, 1, 2, 0) == pytest.approx(0.5)


def test_pictures_that_look_the_same_score_1() -> None:
    assert of(3, 0, 0.5, 0) == pytest.approx(1)


def test_pictures_that_have_nothing_in_common_score_0() -> None:
    assert of(1, 3, 0, 0) == pytest.approx(0)


def test_opposite_pictures_score_minus_1() -> None:
    a, e = torch.tensor([[1.0], [2.0], [0.0]]), torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    assert float(monosemanticity(a, e)) == pytest.approx(-1)


def test_a_feature_that_never_rests_is_scaled_from_its_smallest() -> None:
    # 7, 6, 7, 5 scale to what 2, 1, 2, 0 do.
    assert of(7, 6, 7, 5) == pytest.approx(0.5)


@pytest.mark.parametrize("activations", [(0, 0, 0, 0), (0.1, 0.1, 0.1, 0.1), (0, 0.3, 0, 0)])
def test_without_a_pair_of_pictures_it_is_undefined(activations: tuple[float, ...]) -> None:
    assert math.isnan(of(*activations))


def test_rounding_does_not_make_a_pair() -> None:
    a = torch.full((1000, 1), 1 / 3)
    a[3] = 5 / 7
    assert monosemanticity(a, E.repeat(250, 1)).isnan()


def test_a_faint_second_picture_makes_a_pair() -> None:
    assert of(1, 0, 1e-6, 0) == pytest.approx(1)


def test_length_of_embeddings_does_not_matter() -> None:
    a = torch.rand(4, 5, generator=torch.Generator().manual_seed(0))
    longer = E * torch.tensor([[1.0], [20.0], [0.3], [5.0]])
    torch.testing.assert_close(monosemanticity(a, longer), monosemanticity(a, E))


def test_floor_is_the_mean_cosine_of_two_images() -> None:
    # Six pairs: (0, 2) has cosine 1, (0, 1) and (1, 2) 0, the three with image 3 1/sqrt(2).
    found = MonosemanticityAccumulator(1, 2)
    found.add(torch.ones(4, 1), E)
    assert found.floor() == pytest.approx((1 + 3 * math.sqrt(0.5)) / 6)


@pytest.mark.parametrize("k", range(1, 10))  # some unit vectors are a rounding error too long
def test_floor_of_one_image_is_undefined(k: int) -> None:
    found = MonosemanticityAccumulator(1, 2)
    found.add(torch.ones(1, 1), torch.tensor([[1.0, k]]))
    assert math.isnan(found.floor())


def test_batches_add_up_to_the_whole_also_when_the_smallest_comes_last() -> None:
    a = torch.tensor([[7.0, 0.0], [6.0, 2.0], [7.0, 0.0], [5.0, 0.0]])
    found = MonosemanticityAccumulator(2, 2)
    for row in range(4):
        found.add(a[row : row + 1], E[row : row + 1])
    torch.testing.assert_close(found.result(), monosemanticity(a, E), equal_nan=True)
    assert math.isnan(found.result()[1])


def test_embedding_without_direction_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="zero") as caught:
        monosemanticity(torch.ones(2, 1), torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    assert caught.value.field == "embeddings"


def test_max_pooling_by_hand() -> None:
    # Two images of two patches, three features. Image 0: feature 0 with 1 and 4, feature 2 with 2.
    # Image 1: feature 1 with 3; slots that hold 0 do not count.
    codes = Codes(
        torch.tensor([[0, 2], [0, 1], [1, 2], [0, 0]]),
        torch.tensor([[1.0, 2.0], [4.0, 0.0], [3.0, 0.0], [0.0, 0.0]]),
    )
    assert max_pooled(codes, 2, 3).tolist() == [[4, 0, 2], [0, 3, 0]]


class TestOfOneFeature:
    """The same figure for one feature, with an interval."""

    def found(
        self, *activations: float, sources: tuple[int, ...] = (0, 1, 2, 3)
    ) -> FeatureMonosemanticity | None:
        return of_feature(np.array(activations), E.numpy(), np.array(sources))

    def test_is_that_of_all_features(self) -> None:
        for activations in ((2, 1, 2, 0), (3, 1, 2, 1), (1, 2, 3, 4)):
            one = self.found(*activations)
            assert one is not None
            assert one.value == pytest.approx(of(*activations))

    def test_the_interval_leaves_out_one_source_at_a_time(self) -> None:
        # Weights 1 on images 0, 1, 2 of three sources: 1/3 in all. Without 0 or without 2 the pair
        # left has nothing in common (0), without 1 it is the same (1). Mean 1/3, squares 4/9 + 2/9,
        # error sqrt(2/3 * 6/9) = 2/3: beyond both ends of the scale.
        assert self.found(1, 1, 1, 0) == (
            pytest.approx(1 / 3),
            pytest.approx(1 / 3 - 1.96 * 2 / 3),
            1,
            3,
        )

    def test_pictures_of_one_source_are_left_out_together(self) -> None:
        # Two sources: too few for an interval.
        assert self.found(1, 1, 1, 0, sources=(0, 0, 1, 2)) == (pytest.approx(1 / 3), None, None, 3)

    def test_is_undefined_without_a_pair(self) -> None:
        assert self.found(1, 0, 0, 0) is None
        assert self.found(2, 2, 2, 2) is None
        assert of_feature(np.zeros(0), np.zeros((0, 2)), np.zeros(0, dtype=np.int64)) is None

    def test_is_undefined_where_a_picture_has_no_direction(self) -> None:
        assert of_feature(np.array([1.0, 2, 0]), np.zeros((3, 2)), np.arange(3)) is None


def test_the_floor_of_arrays_is_that_of_all_features() -> None:
    found = MonosemanticityAccumulator(1, 2)
    found.add(torch.ones(4, 1), E)
    assert floor(E.numpy()) == pytest.approx(found.floor())
    assert math.isnan(floor(E.numpy()[:1]))
    assert math.isnan(floor(np.zeros((3, 2))))

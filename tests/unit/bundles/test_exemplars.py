"""Four patches an image (2 x 2), so patch p lies in image p // 4."""

from __future__ import annotations

import numpy as np

from vision_sae.bundles.codes import SparseRows
from vision_sae.bundles.exemplars import Exemplars, exemplars


def choose(
    postings: list[list[tuple[int, float]]], *, top: int, across: int, threshold: float = 0.0
) -> Exemplars:
    """Exemplars of features given as [(patch, activation), ...], strongest first."""
    indptr = np.cumsum([0, *map(len, postings)])
    pairs = [pair for feature in postings for pair in feature]
    rows = SparseRows(
        indptr,
        np.array([p for p, _ in pairs], dtype=np.int64),
        np.array([a for _, a in pairs], dtype=np.float16),
    )
    thresholds = np.full(len(postings), threshold, dtype=np.float32)
    return exemplars(rows, 4, thresholds, top, across)


def masks(found: Exemplars, feature: int = 0) -> list[list[int]]:
    return np.unpackbits(found.mask[feature], axis=1, count=4).tolist()


def test_images_are_distinct_and_strongest_first() -> None:
    # Image 1 fires at patches 5 (9) and 4 (8), image 0 at 2 (7), image 3 at 12 (1).
    found = choose([[(5, 9), (4, 8), (2, 7), (12, 1)]], top=3, across=0)
    assert found.patch.tolist() == [[5, 2, 12]]
    assert found.activation.tolist() == [[9, 7, 1]]


def test_only_the_asked_number_is_kept() -> None:
    found = choose([[(5, 9), (2, 7), (12, 1)]], top=2, across=0)
    assert found.patch.tolist() == [[5, 2]]


def test_empty_slots_hold_minus_one() -> None:
    found = choose([[(5, 9)], []], top=2, across=1)
    assert found.patch.tolist() == [[5, -1, -1], [-1, -1, -1]]
    assert found.activation.tolist() == [[9, 0, 0], [0, 0, 0]]


def test_quantile_exemplars_spread_over_the_rest() -> None:
    # Ten images, image i by patch 4 i with activation 10 - i. The two strongest are on top; of
    # images 2 to 9 three are spread evenly: positions 0, 3.5 and 7 (3.5 rounds to the even 4).
    found = choose([[(4 * i, 10 - i) for i in range(10)]], top=2, across=3)
    assert (found.patch[0] // 4).tolist() == [0, 1, 2, 6, 9]


def test_quantile_exemplars_are_further_images() -> None:
    found = choose([[(4 * i, 100 - i) for i in range(40)]], top=5, across=8)
    images = found.patch[0] // 4
    assert len(set(images.tolist())) == 13
    assert (np.diff(found.activation[0]) < 0).all()


def test_few_images_fill_the_quantile_slots_as_they_are() -> None:
    found = choose([[(0, 3), (4, 2), (8, 1)]], top=1, across=4)
    assert found.patch.tolist() == [[0, 4, 8, -1, -1]]


def test_mask_holds_the_patches_of_the_image_from_the_threshold_on() -> None:
    # Image 1: patches 5 (9), 4 (8), 7 (2); image 0: patch 2 (7). Threshold 8.
    found = choose([[(5, 9), (4, 8), (2, 7), (7, 2)]], top=2, across=0, threshold=8)
    assert masks(found) == [[1, 1, 0, 0], [0, 0, 1, 0]]


def test_mask_always_holds_the_strongest_patch() -> None:
    found = choose([[(5, 9), (2, 1)]], top=2, across=0, threshold=5)
    assert masks(found) == [[0, 1, 0, 0], [0, 0, 1, 0]]


def test_mask_of_an_empty_slot_is_empty() -> None:
    assert masks(choose([[(5, 9)]], top=2, across=0))[1] == [0, 0, 0, 0]


def test_images_without_a_slot_do_not_leak_into_masks() -> None:
    found = choose([[(5, 9), (2, 8), (12, 7)]], top=1, across=0)
    assert masks(found) == [[0, 1, 0, 0]]


def test_features_do_not_leak_into_each_other() -> None:
    found = choose([[(5, 9)], [(2, 4)]], top=1, across=0)
    assert found.patch.tolist() == [[5], [2]]
    assert masks(found, 1) == [[0, 0, 1, 0]]

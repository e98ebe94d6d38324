"""Expected boxes are worked out by hand; expected pixels come from timm and torchvision."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torchvision import models

from tests.worlds.tiny import noise_image
from vision_sae.errors import ImageTooLargeError
from vision_sae.models.grid import PatchGrid, Preprocessing

PICTURES = [(64, 48), (48, 64), (33, 97), (51, 51), (20, 15), (200, 31)]

TIMM = [
    Preprocessing(32, 32),
    Preprocessing(32, 32, crop_pct=0.875),
    Preprocessing(224, 224, crop_pct=0.9, interpolation="bilinear"),
    Preprocessing(32, 64),
    Preprocessing(64, 32, crop_pct=0.8),
    Preprocessing(32, 32, crop_mode="squash"),
    Preprocessing(32, 48, crop_pct=0.9, crop_mode="squash"),
    Preprocessing(30, 30, crop_pct=0.95, mean=(0.5, 0.5, 0.5), std=(0.5, 0.25, 0.125)),
]


@pytest.mark.parametrize("size", PICTURES)
@pytest.mark.parametrize("ours", TIMM, ids=lambda p: f"{p.height}x{p.width}-{p.crop_mode}")
def test_pixels_equal_timm(ours: Preprocessing, size: tuple[int, int]) -> None:
    theirs = create_transform(
        input_size=(3, ours.height, ours.width),
        interpolation=ours.interpolation,
        mean=ours.mean,
        std=ours.std,
        crop_pct=ours.crop_pct,
        crop_mode=ours.crop_mode,
    )
    image = noise_image(*size)
    assert torch.equal(ours(image), theirs(image))


@pytest.mark.parametrize("name", ["vit_b_16", "vit_b_32", "vit_l_16", "vit_h_14"])
def test_pixels_equal_the_recipe_of_torchvision(name: str) -> None:
    from vision_sae.models.families.torchvision import torchvision_preprocessing

    recipe = models.get_model_weights(name).DEFAULT.transforms()
    image = noise_image(300, 260)
    torch.testing.assert_close(
        torchvision_preprocessing(recipe)(image), recipe(image), rtol=0, atol=1e-6
    )


def test_crop_larger_than_the_picture_pads_as_torchvision() -> None:
    ours = Preprocessing(15, 15, crop_pct=1.25, mean=(0, 0, 0), std=(1, 1, 1))
    image = Image.new("RGB", (12, 12), "white")  # resized to 12 x 12 in the middle of 15 x 15
    geometry = ours.geometry(12, 12)
    columns = torch.nonzero(ours(image)[0].sum(0))[:, 0]
    assert columns.min().item() == -geometry.left
    rows = torch.nonzero(ours(image)[0].sum(1))[:, 0]
    assert rows.min().item() == -geometry.top


def test_picture_that_would_be_resized_beyond_the_limit_is_refused() -> None:
    # 20,000 x 1 pixels pass the limit on uploads, but scaled to 224 rows they are a billion.
    with pytest.raises(ImageTooLargeError, match="20000 x 1"):
        Preprocessing(224, 224)(Image.new("RGB", (20000, 1)))


def test_boxes_of_a_wide_picture_with_a_crop() -> None:
    # 80 x 40 -> resized to 40 x 20 (half) -> cropped to 16 x 16: left (40 - 16) / 2 = 12,
    # top (20 - 16) / 2 = 2. Patch (0, 0) covers input (0, 0, 8, 8) = resized (12, 2, 20, 10)
    # = original (24, 4, 40, 20). The others follow in steps of 8 / 0.5 = 16.
    geometry = Preprocessing(16, 16, crop_pct=0.8).geometry(80, 40)
    boxes = PatchGrid(2, 2, 1, 8, 8).boxes(geometry)
    expected = [[24, 4, 40, 20], [40, 4, 56, 20], [24, 20, 40, 36], [40, 20, 56, 36]]
    assert boxes.tolist() == expected


def test_boxes_of_a_squashed_picture_stretch() -> None:
    # 80 x 40 squashed to 16 x 16: a patch of 8 x 8 covers 40 x 20 of the original.
    geometry = Preprocessing(16, 16, crop_mode="squash").geometry(80, 40)
    boxes = PatchGrid(2, 2, 0, 8, 8).boxes(geometry)
    assert boxes.tolist() == [[0, 0, 40, 20], [40, 0, 80, 20], [0, 20, 40, 40], [40, 20, 80, 40]]


def test_boxes_are_row_major_and_follow_the_patch_shape() -> None:
    # 1 x 3 patches, each 16 high and 8 wide, on an input of 16 x 24 that is the picture itself.
    geometry = Preprocessing(16, 24).geometry(24, 16)
    boxes = PatchGrid(1, 3, 1, 16, 8).boxes(geometry)
    assert boxes.tolist() == [[0, 0, 8, 16], [8, 0, 16, 16], [16, 0, 24, 16]]


def test_box_in_padding_is_empty() -> None:
    geometry = Preprocessing(16, 16, crop_pct=2).geometry(8, 8)  # 8 x 8 in the middle of 16 x 16
    boxes = PatchGrid(4, 4, 1, 4, 4).boxes(geometry)
    assert boxes[0].tolist() == [0, 0, 0, 0]
    assert boxes[5].tolist() == [0, 0, 4, 4]


def test_inside_selects_patches_half_of_which_is_covered() -> None:
    grid, geometry = PatchGrid(2, 2, 1, 8, 8), Preprocessing(16, 16).geometry(16, 16)
    # Of the left column 3 of 8 pixels, of the right one all.
    assert grid.inside((5, 0, 16, 16), geometry).tolist() == [False, True, False, True]
    assert grid.inside((4, 0, 16, 16), geometry).all()
    # The centre of the second patch is in this box, but only .6 * .6 of its area.
    assert grid.inside((0, 0, 12.8, 4.8), geometry).tolist() == [True, False, False, False]


def test_box_that_covers_no_half_selects_the_patch_that_it_overlaps_most() -> None:
    grid, geometry = PatchGrid(2, 2, 1, 8, 8), Preprocessing(16, 16).geometry(16, 16)
    assert grid.inside((14, 14, 15, 15), geometry).tolist() == [False, False, False, True]
    # 1 x 3 pixels of the left upper patch, 2 x 3 of the right upper one; its centre is in the left.
    assert grid.inside((7, 0, 10, 3), geometry).tolist() == [False, True, False, False]


@pytest.mark.parametrize(
    "box",
    [
        (50, 50, 60, 60),  # beside the picture
        (-9, 0, 0, 16),  # ends where it begins
        (0, 0, 3, 8),  # in what the crop cuts off: of 40 x 8 pixels the model sees columns 16 to 24
        (math.nan, 0, 16, 16),
    ],
)
def test_box_beside_what_the_model_sees_selects_no_patch(box: tuple[float, ...]) -> None:
    grid, geometry = PatchGrid(2, 2, 1, 8, 8), Preprocessing(16, 16).geometry(40, 8)
    assert not grid.inside(box, geometry).any()  # type: ignore[arg-type]


def test_nearest_is_by_the_middles_of_the_patches() -> None:
    grid, geometry = PatchGrid(2, 2, 1, 8, 8), Preprocessing(16, 16).geometry(16, 16)
    assert [grid.nearest(*point, geometry) for point in ((7, 9), (500, -3))] == [2, 1]


def test_preprocessing_round_trips_through_json() -> None:
    preprocessing = Preprocessing(32, 64, crop_pct=0.9, crop_mode="squash")
    assert Preprocessing(**preprocessing.to_json()) == preprocessing


def test_preprocessing_does_not_change_the_picture() -> None:
    image = noise_image(40, 30)
    before = np.array(image)
    Preprocessing(32, 32)(image)
    assert np.array_equal(np.array(image), before)


def test_normalisation_is_mean_and_deviation_of_unit_scaled_pixels() -> None:
    image = Image.new("RGB", (4, 4), (255, 0, 51))
    out = Preprocessing(4, 4, mean=(0.5, 0.5, 0.2), std=(0.5, 0.25, 1))(image)
    assert out[:, 0, 0].tolist() == pytest.approx([1, -2, 0])


@pytest.mark.parametrize(
    ("preprocessing", "words"),
    [
        (Preprocessing(224, 224), "resize shorter side to 224, crop centre"),
        (Preprocessing(224, 224, crop_pct=0.875), "resize shorter side to 256, crop centre"),
        (Preprocessing(32, 64), "resize to cover 64 x 32, crop centre"),
        (Preprocessing(32, 64, crop_mode="squash"), "stretch to 64 x 32"),
        (
            Preprocessing(32, 64, crop_pct=0.5, crop_mode="squash"),
            "stretch to 128 x 64, crop centre",
        ),
    ],
)
def test_preprocessing_in_words(preprocessing: Preprocessing, words: str) -> None:
    assert preprocessing.in_words() == words

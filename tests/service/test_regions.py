"""Regions of requests as patches of a grid of 4 x 4; patch i lies in row i // 4, column i % 4."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from vision_sae_server.requests.regions import region_mask

from vision_sae.errors import InvalidInputError
from vision_sae.models.grid import Geometry, PatchGrid, Preprocessing
from vision_sae.tensors import to_proto
from vision_sae.v1.image_pb2 import Box, Region

GRID = PatchGrid(4, 4, 1, 8, 8)
SQUARE = Preprocessing(32, 32).geometry(64, 64)
PANORAMA = Preprocessing(32, 32).geometry(800, 100)
"""Of which the model sees columns 350 to 450."""
RIGHT = np.tile(np.arange(64) >= 32, (64, 1))
RIGHT_PATCHES = [2, 3, 6, 7, 10, 11, 14, 15]


def patches(region: Region, geometry: Geometry = SQUARE) -> list[int]:
    """The patches of a region."""
    return np.flatnonzero(region_mask(region, GRID, geometry, "place")).tolist()


def box(x0: float, y0: float, x1: float, y1: float) -> Region:
    """A box as a region."""
    return Region(box=Box(x0=x0, y0=y0, x1=x1, y1=y1))


def mask(values: Any, **quantised: float) -> Region:
    """A mask as a region."""
    return Region(mask=to_proto(np.asarray(values), **quantised))


@pytest.mark.parametrize(
    "values",
    [
        RIGHT,
        RIGHT.astype(np.uint8),  # 0 and 1
        RIGHT * np.uint8(255),
        RIGHT * np.uint8(72) + np.uint8(127),  # 127 is outside, 199 inside
        RIGHT[::8, ::8],  # stretched
        RIGHT.repeat(2, axis=0).repeat(2, axis=1),  # larger, in the same proportions
    ],
)
def test_masks_of_truths_of_ones_and_of_greys(values: Any) -> None:
    assert patches(mask(values)) == RIGHT_PATCHES


def test_a_mask_of_ones_is_everything_and_a_single_pixel_its_patch() -> None:
    assert patches(mask(np.ones((64, 64), np.uint8))) == list(range(16))
    one = np.zeros((64, 64), np.uint8)
    one[63, 0] = 1
    assert patches(mask(one)) == [12]


def test_a_mask_over_a_picture_whose_sides_are_no_whole_patches() -> None:
    for width in range(37, 400, 7):  # corners that rounding puts outside of the mask
        geometry = Preprocessing(32, 32, crop_mode="squash").geometry(width, 53)
        assert patches(mask(np.ones((53, width), np.bool_)), geometry) == list(range(16))


@pytest.mark.parametrize(
    ("region", "geometry"),
    [
        (mask(RIGHT & False), SQUARE),
        (mask(np.zeros((64, 64), np.uint8)), SQUARE),
        (mask(np.full((64, 64), 127, np.uint8)), SQUARE),
        (mask(np.full((64, 64), 2, np.uint8)), SQUARE),
        (mask(np.arange(800) < np.full((100, 1), 340)), PANORAMA),
        (box(500, 500, 600, 600), SQUARE),
        (box(-10, -10, 0, 0), SQUARE),
        (box(64, 0, 65, 64), SQUARE),
        (box(0, 0, 50, 100), PANORAMA),
        (box(0, 0, float("nan"), 1), SQUARE),
    ],
)
def test_a_region_that_selects_nothing_is_refused(region: Region, geometry: Geometry) -> None:
    with pytest.raises(InvalidInputError, match="selects no patch") as refused:
        patches(region, geometry)
    assert refused.value.field == "place"


def test_a_refusal_says_which_part_the_model_sees() -> None:
    with pytest.raises(InvalidInputError, match=r"800 x 100 .* x 350 to 450 and y 0 to 100"):
        patches(box(0, 0, 50, 100), PANORAMA)


@pytest.mark.parametrize(
    ("region", "said"),
    [
        (mask(np.ones((64, 64, 3), np.uint8)), "rows and columns"),
        (mask(np.ones((0, 64), np.uint8)), "rows and columns"),
        (mask(np.ones(64, np.bool_)), "rows and columns"),
        (mask(np.ones((64, 64), np.float32)), "BOOL or UINT8"),
        (mask(np.ones((64, 64), np.int64)), "BOOL or UINT8"),
        (mask(np.ones((64, 64), np.uint8), scale=1 / 255), "BOOL or UINT8"),
        (mask(np.ones((64, 100), np.uint8)), "100 x 64 pixels, the picture 64 x 64"),
    ],
)
def test_a_mask_that_cannot_lie_over_the_picture_is_refused(region: Region, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said) as refused:
        patches(region)
    assert refused.value.field == "place.mask"


def test_a_mask_that_is_turned_is_refused() -> None:
    geometry = Preprocessing(32, 32).geometry(64, 48)
    with pytest.raises(InvalidInputError, match="48 x 64 pixels, the picture 64 x 48"):
        patches(mask(np.ones((64, 48), np.bool_)), geometry)

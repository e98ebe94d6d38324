"""Where colours land: worked out by hand on pictures small enough to draw on paper."""

import numpy as np
import pytest
from PIL import Image
from vision_sae_client.colours import FEATURES, ramp
from vision_sae_client.overlay import (
    draw_boxes,
    heat_layer,
    open_picture,
    overlay,
    winner_layer,
)

from vision_sae.v1.image_pb2 import Box, PatchActivation, PatchGrid


def grid(rows: int, cols: int, size: tuple[int, int], extent: tuple[float, ...]) -> PatchGrid:
    x0, y0, x1, y1 = extent
    return PatchGrid(
        rows=rows,
        cols=cols,
        image_width=size[0],
        image_height=size[1],
        extent=Box(x0=x0, y0=y0, x1=x1, y1=y1),
    )


def alpha(layer: Image.Image) -> np.ndarray:
    return np.asarray(layer)[..., 3]


def test_only_the_extent_is_coloured() -> None:
    # A 12 x 8 picture, cropped by the model to the square 2 <= x < 10: columns 0, 1, 10, 11 clear.
    layer = heat_layer(np.ones((2, 2)), grid(2, 2, (12, 8), (2, 0, 10, 8)), (12, 8))
    expected = np.zeros((8, 12), dtype=bool)
    expected[:, 2:10] = True
    assert layer.size == (12, 8)
    np.testing.assert_array_equal(alpha(layer) > 0, expected)


def test_an_extent_larger_than_the_picture_is_cut() -> None:
    # Padded by 4 above and below: of 4 rows of 4 pixels, rows 1 and 2 lie on the 16 x 8 picture.
    heatmap = np.array([[9.0], [1.0], [0.0], [9.0]])
    layer = heat_layer(heatmap, grid(4, 1, (16, 8), (0, -4, 16, 12)), (16, 8), peak=9.0)
    # Pixel rows 1 and 2 straddle the centre (y = 2) of the patch with value 1. There y = 1.5 is
    # 1/8 of the way to 9: 2, and y = 2.5 is 1/8 of the way to 0: 7/8.
    strength = (alpha(layer)[:, 0] / 255 / 0.85) ** 2 * 9
    assert strength[1] == pytest.approx(2.0, abs=0.05)
    assert strength[2] == pytest.approx(0.875, abs=0.05)


def test_a_patch_glows_around_its_own_place_on_a_resized_picture() -> None:
    # The original is 60 x 60 with 3 x 3 patches of 20; the overlay 30 x 30, so patches of 10.
    # Patch (0, 2) fades to zero at the centres of its neighbours: x = 15 and y = 15.
    heatmap = np.zeros((3, 3))
    heatmap[0, 2] = 1.0
    seen = alpha(heat_layer(heatmap, grid(3, 3, (60, 60), (0, 0, 60, 60)), (30, 30)))
    assert (seen[:15, 15:] > 0).all()
    assert (seen[:, :15] == 0).all()
    assert (seen[15:] == 0).all()
    assert seen[4, 25] == seen.max()


def test_negative_contributions_are_cold_and_zero_is_clear() -> None:
    warm, cold = ramp(np.array([1.0, -1.0])).astype(int)
    assert warm[0] > warm[2]
    assert cold[2] > warm[2]
    layer = heat_layer(np.array([[0.0]]), grid(1, 1, (4, 4), (0, 0, 4, 4)), (4, 4))
    assert (alpha(layer) == 0).all()


def test_each_patch_has_the_colour_of_its_strongest_feature() -> None:
    # 4 x 2 pixels, 1 x 2 patches: feature 0 wins left; feature 1, relative to its own peak, right.
    left, right = np.array([[4.0, 1.0]]), np.array([[0.0, 0.5]])
    seen = np.asarray(winner_layer([left, right], grid(1, 2, (4, 2), (0, 0, 4, 2)), (4, 2)))
    assert tuple(seen[0, 1, :3]) == FEATURES[0]
    assert tuple(seen[0, 2, :3]) == FEATURES[1]


def test_boxes_are_half_open_and_scaled() -> None:
    # Box (4, 4)-(12, 12) of a 16 x 16 original, drawn on an 8 x 8 copy: pixels 2 to 5.
    picture = Image.new("RGB", (8, 8), (128, 128, 128))
    draw_boxes(picture, [Box(x0=4, y0=4, x1=12, y1=12)], (16, 16), width=1)
    white = (np.asarray(picture) == 255).all(axis=2)
    expected = np.zeros((8, 8), dtype=bool)
    expected[2:6, 2:6] = True
    expected[3:5, 3:5] = False
    np.testing.assert_array_equal(white, expected)


def test_overlay_keeps_the_pictures_size_and_marks_the_patch() -> None:
    picture = Image.new("RGB", (20, 10), (200, 30, 30))
    where = grid(1, 2, (20, 10), (0, 0, 20, 10))
    patch = PatchActivation(row=0, col=1, box=Box(x0=10, y0=0, x1=20, y1=10), activation=1)
    drawn = overlay(picture, np.array([[0.0, 1.0]]), where, [patch])
    assert (drawn.mode, drawn.size) == ("RGBA", (20, 10))
    assert drawn.getpixel((10, 5)) == (255, 255, 255, 255)
    red, green, _, _ = drawn.getpixel((2, 5))
    assert red > green  # still the picture, faded


def test_pictures_are_oriented_and_made_smaller(tmp_path) -> None:
    # EXIF orientation 6: the file is 40 x 20, a viewer shows 20 x 40.
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "turned.jpg", exif=exif)
    assert open_picture(tmp_path / "turned.jpg").size == (20, 40)
    assert open_picture(tmp_path / "turned.jpg", max_side=10).size == (5, 10)

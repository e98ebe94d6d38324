"""Where a unit fires, as pixels of its thumbnail."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image

from tests.worlds.milan import evidence_of
from vision_sae.activations.store import ImageRecord
from vision_sae.descriptions.regions import blanked, bounds, outlined, region, thumbnail

CORNER = np.array([[True, False], [False, False]])


def test_a_region_lies_where_its_patches_lie_in_the_thumbnail() -> None:
    """A picture of 64 x 32 pixels, halved and cropped to its middle 16 x 16 by the model.

    The upper left patch of 8 pixels is the box (16, 0, 32, 16) of the original, and so
    (8, 0, 16, 8) of a thumbnail of 32 x 16 pixels.
    """
    evidence = evidence_of([Image.new("RGB", (16, 16))], [[(0, CORNER)]])
    evidence = replace(evidence, images=[ImageRecord("wide.png", 64, 32, "", ())])
    mask = region(evidence, evidence.firings(0)[0], (32, 16))
    expected = np.zeros((16, 32), dtype=np.bool_)
    expected[0:8, 8:16] = True
    assert np.array_equal(mask, expected)


def test_a_region_smaller_than_a_pixel_is_that_pixel() -> None:
    evidence = evidence_of([Image.new("RGB", (16, 16))], [[(0, CORNER)]])
    mask = region(evidence, evidence.firings(0)[0], (1, 1))
    assert mask.tolist() == [[True]]


def test_thumbnails_are_rgb() -> None:
    evidence = evidence_of([Image.new("L", (16, 16), 255)], [[(0, CORNER)]])
    picture = thumbnail(evidence, 0)
    assert (picture.mode, picture.size, picture.getpixel((3, 3))) == (
        "RGB",
        (16, 16),
        (255, 255, 255),
    )


def test_bounds_grow_but_stay_inside_the_picture() -> None:
    mask = np.zeros((10, 20), dtype=np.bool_)
    mask[1:3, 5:9] = True
    assert bounds(mask, 0) == (5, 1, 9, 3)
    assert bounds(mask, 0.5) == (3, 0, 11, 5)  # two pixels, half of the longer side; one above


def test_a_blanked_region_is_all_that_is_left_of_its_box() -> None:
    mask = np.zeros((4, 4), dtype=np.bool_)
    mask[1, 1] = mask[2, 2] = True
    alone = np.asarray(blanked(Image.new("RGB", (4, 4), "white"), mask, (9, 8, 7)))
    assert alone.tolist() == [
        [[255, 255, 255], [9, 8, 7]],
        [[9, 8, 7], [255, 255, 255]],
    ]


def test_an_outline_follows_the_edge_of_the_region() -> None:
    mask = np.zeros((16, 16), dtype=np.bool_)
    mask[4:12, 4:12] = True
    crop = np.asarray(outlined(Image.new("RGB", (16, 16), "blue"), mask, 160))
    assert crop.shape == (160, 160, 3)  # the box of 8 pixels and 4 on every side, 10 times as large
    red = (crop == (255, 0, 0)).all(-1)
    rows, cols = np.nonzero(red)
    assert (rows.min(), rows.max(), cols.min(), cols.max()) == (39, 121, 39, 121)
    assert not red[50:110, 50:110].any()
    assert (crop[80, 80] == (0, 0, 255)).all()

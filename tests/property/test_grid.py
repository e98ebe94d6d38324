from __future__ import annotations

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from vision_sae.models.grid import PatchGrid, Preprocessing

PREPROCESSING = st.builds(
    Preprocessing,
    height=st.sampled_from([32, 48]),
    width=st.sampled_from([32, 64]),
    crop_pct=st.sampled_from([1.0, 0.875, 0.7]),
    crop_mode=st.sampled_from(["center", "squash"]),
    interpolation=st.just("bilinear"),
    mean=st.just((0.0, 0.0, 0.0)),
    std=st.just((1.0, 1.0, 1.0)),
)
SIDE = st.integers(40, 300)


def grid_of(preprocessing: Preprocessing) -> PatchGrid:
    return PatchGrid(preprocessing.height // 8, preprocessing.width // 8, 1, 8, 8)


@settings(max_examples=150, deadline=None)
@given(PREPROCESSING, SIDE, SIDE, st.data())
def test_a_painted_box_arrives_in_its_patch(
    preprocessing: Preprocessing, width: int, height: int, data: st.DataObject
) -> None:
    grid = grid_of(preprocessing)
    patch = data.draw(st.integers(0, grid.patches - 1))
    box = grid.boxes(preprocessing.geometry(width, height))[patch]
    x0, y0, x1, y1 = np.round(box).astype(int)
    assume(x1 - x0 >= 4)
    assume(y1 - y0 >= 4)
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[y0:y1, x0:x1] = 255
    arrived = preprocessing(Image.fromarray(pixels))[0]
    per_patch = arrived.unfold(0, 8, 8).unfold(1, 8, 8).mean((2, 3)).flatten()
    assert per_patch.argmax() == patch
    # The rounding of the box to whole pixels and the filter spill over the borders a little.
    assert per_patch[patch] > 0.55
    assert per_patch[patch] > 0.5 * per_patch.sum()


@given(PREPROCESSING, SIDE, SIDE)
def test_boxes_tile_the_cropped_region_without_gaps(
    preprocessing: Preprocessing, width: int, height: int
) -> None:
    grid, geometry = grid_of(preprocessing), preprocessing.geometry(width, height)
    boxes = grid.boxes(geometry).reshape(grid.rows, grid.cols, 4)
    assert np.array_equal(boxes[:, :-1, 2], boxes[:, 1:, 0])  # each ends where the next begins
    assert np.array_equal(boxes[:-1, :, 3], boxes[1:, :, 1])
    cropped = np.array([preprocessing.width, preprocessing.height])
    scale = np.array([geometry.scale_x, geometry.scale_y])
    np.testing.assert_allclose(boxes[-1, -1, 2:] - boxes[0, 0, :2], cropped / scale, rtol=1e-4)


@given(PREPROCESSING, SIDE, SIDE)
def test_boxes_lie_in_the_picture(preprocessing: Preprocessing, width: int, height: int) -> None:
    x0, y0, x1, y1 = grid_of(preprocessing).boxes(preprocessing.geometry(width, height)).T
    assert (x0 >= 0).all()
    assert (y0 >= 0).all()
    assert (x1 <= width).all()
    assert (y1 <= height).all()


@given(PREPROCESSING, SIDE, SIDE, st.data())
def test_inside_of_a_patch_box_is_that_patch(
    preprocessing: Preprocessing, width: int, height: int, data: st.DataObject
) -> None:
    grid, geometry = grid_of(preprocessing), preprocessing.geometry(width, height)
    patch = data.draw(st.integers(0, grid.patches - 1))
    box = tuple(grid.boxes(geometry)[patch].tolist())
    assert np.flatnonzero(grid.inside(box, geometry)).tolist() == [patch]  # type: ignore[arg-type]

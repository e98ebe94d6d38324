from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from vision_sae.pictures.folder import Picture
from vision_sae.pictures.views import View, with_views


def gradient(folder: Path) -> Picture:
    """A picture whose red says the column and whose green says the row."""
    rows, cols = np.mgrid[0:100, 0:200]
    pixels = np.stack([cols, rows, np.zeros_like(rows)], axis=2).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    return Picture("a.png", folder / "a.png", "a caption", ("tag",))


def test_every_picture_is_followed_by_its_views(tmp_path: Path) -> None:
    picture = gradient(tmp_path)
    views = with_views([picture, picture], 3)
    assert [v.id for v in views] == ["a.png", "a.png#1", "a.png#2"] * 2
    assert views[0] is picture
    assert {(v.caption, v.tags) for v in views} == {("a caption", ("tag",))}


def test_views_are_of_one_source_with_their_picture(tmp_path: Path) -> None:
    picture = gradient(tmp_path)
    assert [v.source or v.id for v in with_views([picture], 3)] == ["a.png"] * 3
    crop = replace(picture, source="photo.jpg")
    assert [v.source for v in with_views([crop], 3)] == ["photo.jpg"] * 3


def test_one_view_is_the_picture_itself(tmp_path: Path) -> None:
    pictures = [gradient(tmp_path)]
    assert with_views(pictures, 1) == pictures


def test_view_is_a_crop_of_forty_percent_at_least_mirrored_or_not(tmp_path: Path) -> None:
    picture, mirrored = gradient(tmp_path), 0
    whole = np.asarray(picture.load())
    for view in with_views([picture], 40)[1:]:
        image = view.load()
        if np.asarray(image)[0, 0, 0] > np.asarray(image)[0, -1, 0]:
            image, mirrored = ImageOps.mirror(image), mirrored + 1
        pixels = np.asarray(image)
        left, top = int(pixels[0, 0, 0]), int(pixels[0, 0, 1])
        part = whole[top : top + image.height, left : left + image.width]
        assert np.array_equal(pixels, part)
        assert image.width * image.height >= 0.35 * 200 * 100  # clipped where it is too wide
    assert 5 < mirrored < 35


def test_view_is_the_same_every_time_and_another_for_each_number(tmp_path: Path) -> None:
    picture = gradient(tmp_path)
    first, second = with_views([picture], 3)[1:]
    assert isinstance(first, View)
    assert np.array_equal(np.asarray(first.load()), np.asarray(first.load()))
    assert first.load().size != second.load().size

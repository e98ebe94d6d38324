"""A picture is the same picture in whatever form a caller has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.worlds import tiny as worlds
from vision_sae.api.pictures import is_one, named, to_harvest, to_pil
from vision_sae.errors import InvalidImageError, InvalidInputError
from vision_sae.pictures.folder import data_sha256

IMAGE = worlds.noise_image(5, 4)
PIXELS = np.asarray(IMAGE)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    IMAGE.save(tmp_path / "noise.png")
    return tmp_path / "noise.png"


@pytest.mark.parametrize(
    "picture",
    [
        IMAGE,
        PIXELS,
        PIXELS.astype(np.float64) / 255,
        PIXELS.astype(np.float32) / 255,
        torch.from_numpy(PIXELS.copy()).movedim(2, 0),
        torch.from_numpy(PIXELS.copy()).movedim(2, 0) / 255,
        (torch.from_numpy(PIXELS.copy()).movedim(2, 0) / 255).requires_grad_(),
    ],
)
def test_every_form_is_the_same_picture(picture: Any, file: Path) -> None:
    for given in (picture, file, str(file)):
        np.testing.assert_array_equal(np.asarray(to_pil(given)), PIXELS)
        assert is_one(given)


def test_what_is_transparent_is_on_white_as_in_a_file() -> None:
    clear = Image.new("RGBA", (1, 1), (255, 0, 0, 0))
    assert to_pil(clear).getpixel((0, 0)) == (255, 255, 255)


def test_grey_of_16_bits_is_scaled_as_in_a_file() -> None:
    grey = Image.fromarray(np.array([[257 * 7]], dtype=np.uint16))
    assert to_pil(grey).getpixel((0, 0)) == (7, 7, 7)


def test_a_picture_is_turned_upright() -> None:
    turned = Image.new("RGB", (4, 2))
    turned.getexif()[274] = 6
    assert to_pil(turned).size == (2, 4)


@pytest.mark.parametrize(
    ("picture", "told"),
    [
        (np.zeros((2, 2), np.uint8), r"\(H, W, 3\)"),
        (np.zeros((2, 4, 4, 3), np.uint8), "several pictures as a list"),
        (torch.zeros(2, 3, 4, 4), "several pictures as a list"),
        (np.full((2, 2, 3), 1.5), "divide by 255"),
        (np.full((2, 2, 3), np.nan), "divide by 255"),
        (np.zeros((2, 2, 3), np.int64), "not int64"),
        (np.zeros((0, 2, 3), np.uint8), r"\(H, W, 3\)"),
    ],
)
def test_what_is_no_picture_is_refused(picture: Any, told: str) -> None:
    with pytest.raises(InvalidImageError, match=told) as refused:
        to_pil(picture)
    assert refused.value.field == "pictures"


def test_what_is_nothing_like_a_picture_is_refused() -> None:
    for given in (3, None, [None]):
        with pytest.raises(InvalidImageError):
            named(given)  # type: ignore[arg-type]


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidImageError, match="nothing.png"):
        to_pil(tmp_path / "nothing.png")


def test_several_pictures_have_names(file: Path) -> None:
    assert [n.name for n in named([file, IMAGE, PIXELS])] == ["noise.png", "picture 1", "picture 2"]
    assert not is_one([file])
    assert named([]) == []


def test_pictures_to_harvest_are_known_by_what_they_show(file: Path) -> None:
    one, other = to_harvest([IMAGE, PIXELS], ["a", "b"])
    assert (one.id, one.caption, other.id) == ("picture 0", "a", "picture 1")
    assert data_sha256([one]) == data_sha256(to_harvest([PIXELS], ["a"]))
    assert [picture.id for picture in to_harvest(IMAGE)] == ["picture 0"]
    changed = PIXELS.copy()
    changed[0, 0, 0] ^= 1
    assert data_sha256([one]) != data_sha256(to_harvest([changed], ["a"]))


def test_files_of_the_same_name_stay_apart(tmp_path: Path) -> None:
    paths = [tmp_path / folder / "a.png" for folder in ("x", "y")]
    assert [p.id for p in to_harvest(paths)] == ["000000-a.png", "000001-a.png"]


def test_captions_are_as_many_as_pictures() -> None:
    with pytest.raises(InvalidInputError, match="2 captions for 1 pictures"):
        to_harvest([IMAGE], ["a", "b"])

"""What is measured in the pixels of patches, on pictures drawn by hand."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.planted.predicates import World, evidence, units
from vision_sae.descriptions.predicates.looks import (
    COLOURS,
    LOOKS,
    ROW,
    Look,
    colour_means,
    colour_names,
    looks_of,
    measured,
    to_lab,
)
from vision_sae.models.grid import PatchGrid, Preprocessing

GRID = PatchGrid(8, 8, 0, 8, 8)
SIDE = 64


def looks(image: Image.Image) -> dict[Look, np.ndarray]:
    """{look: the patches (8, 8) that have it}"""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    geometry = Preprocessing(SIDE, SIDE).geometry(*image.size)
    found = looks_of(colour_means(buffer.getvalue(), geometry, GRID)).reshape(8, 8, len(LOOKS))
    return {look: found[..., row] for look, row in ROW.items()}


def disc(ink: str, paper: str) -> Image.Image:
    image = Image.new("RGB", (SIDE, SIDE), paper)
    ImageDraw.Draw(image).ellipse((16, 16, 48, 48), fill=ink)
    return image


def test_lab_of_known_colours() -> None:
    # CIE 15 by way of any colour calculator: sRGB red, mid grey, white.
    pixels = np.array([[255, 0, 0], [119, 119, 119], [255, 255, 255]], dtype=np.uint8)
    expected = [[53.24, 80.09, 67.20], [50.03, 0, 0], [100, 0, 0]]
    assert to_lab(pixels) == pytest.approx(np.array(expected), abs=0.2)


@pytest.mark.parametrize(
    ("pixels", "name"),
    [
        ((200, 30, 30), "red"),
        ((255, 170, 200), "pink"),
        ((245, 140, 30), "orange"),
        ((250, 220, 60), "yellow"),
        ((110, 70, 35), "brown"),
        ((40, 150, 60), "green"),
        ((40, 90, 200), "blue"),
        ((176, 216, 244), "blue"),
        ((120, 60, 170), "purple"),
        ((10, 10, 10), "black"),
        ((128, 128, 128), "grey"),
        ((255, 255, 255), "white"),
    ],
)
def test_colours_get_the_name_that_people_give_them(
    pixels: tuple[int, int, int], name: str
) -> None:
    number = int(colour_names(to_lab(np.array(pixels, dtype=np.uint8))))
    assert list(COLOURS)[number] == name


def test_a_colour_between_two_names_gets_none() -> None:
    # 15.1 from the nearest orange, 16.0 from the nearest red.
    assert int(colour_names(np.array([53.5, 55.0, 52.5], dtype=np.float32))) == -1


def test_the_object_is_what_no_path_of_like_colours_joins_to_the_border() -> None:
    found = looks(disc("red", "white"))
    assert found[Look("ground", "object")][3:5, 3:5].all()
    assert found[Look("ground", "background")][0].all()
    assert found[Look("colour", "red")][3:5, 3:5].all()
    assert found[Look("colour", "white")][0].all()
    # A gradient is background, however far its ends are apart.
    ramp = Image.linear_gradient("L").resize((SIDE, SIDE)).convert("RGB")
    assert looks(ramp)[Look("ground", "background")].all()


def test_parts_are_thirds_of_the_object_wherever_it_lies() -> None:
    image = Image.new("RGB", (SIDE, SIDE), "white")
    ImageDraw.Draw(image).rectangle((8, 32, 31, 55), fill="blue")  # rows 4 to 6, columns 1 to 3
    found = looks(image)
    assert found[Look("part", "top")][4, 1:4].all()
    assert not found[Look("part", "top")][[5, 6], :].any()
    assert found[Look("part", "underside")][6, 1:4].all()
    assert found[Look("part", "left side")][4:7, 1].all()
    assert found[Look("part", "right side")][4:7, 3].all()


def test_places_are_thirds_of_the_picture() -> None:
    found = looks(Image.new("RGB", (SIDE, SIDE), "white"))
    upper = found[Look("place", "top")]
    assert upper[:2].all() or upper[:3].all()
    assert not upper[4:].any()
    assert found[Look("place", "border")].sum() == 28
    assert found[Look("place", "corner")][0, 0]
    assert not found[Look("place", "corner")][0, 4]


def test_lines_have_the_direction_in_which_they_run() -> None:
    image = Image.new("RGB", (SIDE, SIDE), "white")
    pen = ImageDraw.Draw(image)
    for y in range(0, SIDE, 8):
        pen.rectangle((0, y, SIDE, y + 3), fill="black")
    found = looks(image)
    assert found[Look("lines", "horizontal")].mean() > 0.9
    assert not found[Look("lines", "vertical")].any()
    turned = looks(image.transpose(Image.Transpose.ROTATE_90))
    assert turned[Look("lines", "vertical")].mean() > 0.9


def test_light_and_texture() -> None:
    flat = looks(Image.new("RGB", (SIDE, SIDE), (20, 20, 20)))
    assert flat[Look("light", "dark")].all()
    assert flat[Look("texture", "smooth")].all()
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
    assert looks(Image.fromarray(noise))[Look("texture", "textured")].all()
    assert looks(Image.new("RGB", (SIDE, SIDE), "white"))[Look("light", "bright")].all()


def test_measuring_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    found = evidence(World.random(6, 0), units(0, 0)[:1], 0)
    whole = measured(found, None)
    kept = measured(found, tmp_path)
    assert (kept == whole).all()
    (done,) = tmp_path.glob("looks-*.done")
    done.write_text("4")
    (path,) = tmp_path.glob("looks-*.npy")
    array = np.load(path, mmap_mode="r+")
    array[4:] = False
    array.flush()
    assert (measured(found, tmp_path) == whole).all()

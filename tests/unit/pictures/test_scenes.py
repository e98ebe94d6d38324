"""Pictures composed of known parts, measured against what they say they show."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from itertools import combinations, islice
from typing import get_args

import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from vision_sae.errors import InvalidInputError
from vision_sae.pictures import scenes as planted_scenes
from vision_sae.pictures.scenes import (
    BACKGROUNDS,
    COLOURS,
    Attributes,
    Place,
    Scene,
    Shape,
    draw,
    random_attributes,
    scenes,
)

SIDE = 200
CIRCLE = Attributes("circle", "red", "plain", "large", "centre", "white")


def pixels(scene: Scene) -> np.ndarray:
    return np.asarray(scene.image).astype(int)


def changed(a: Scene, b: Scene) -> np.ndarray:
    return (pixels(a) != pixels(b)).any(axis=2)


def test_caption_says_everything() -> None:
    scene = Attributes("star", "orange", "striped", "small", "top left", "light blue", "STOP")
    assert scene.caption == (
        "a small orange striped star at the top left of a light blue background with the word STOP"
    )


def test_caption_of_a_plain_object_in_the_centre() -> None:
    assert CIRCLE.caption == "a large red circle in the centre of a white background"


def test_pixels_have_the_colours_of_their_parts() -> None:
    scene = draw(CIRCLE, side=SIDE)
    inside = ~binary_dilation(~scene.parts["object"], iterations=2)
    outside = ~binary_dilation(scene.parts["object"], iterations=2)
    assert (pixels(scene)[inside] == COLOURS["red"]).all()
    assert (pixels(scene)[outside] == BACKGROUNDS["white"]).all()


@pytest.mark.parametrize(
    ("shape", "share"),
    [
        ("circle", math.pi / 4),
        ("square", 0.88**2),
        ("triangle", 0.9 / 2),
        ("cross", 1 - 4 * 0.34**2),
        ("ring", math.pi / 4 * (1 - 0.46**2)),
        ("diamond", 0.68 / 2),
    ],
)
@pytest.mark.parametrize(("size", "extent"), [("small", 80), ("large", 144)])
def test_mask_has_the_area_of_the_shape(shape: Shape, share: float, size: str, extent: int) -> None:
    scene = draw(replace(CIRCLE, shape=shape, size=size), side=400)  # type: ignore[arg-type]
    assert scene.parts["object"].sum() == pytest.approx(share * extent**2, rel=0.03)


@pytest.mark.parametrize("place", get_args(Place))
def test_object_lies_at_its_place(place: str) -> None:
    scene = draw(replace(CIRCLE, place=place), side=SIDE, seed=3)  # type: ignore[arg-type]
    y, x = (float(v.mean()) / SIDE for v in np.nonzero(scene.parts["object"]))
    words = place.split()
    assert ("left" in words, "right" in words) == (x < 1 / 3, x > 2 / 3)
    assert ("top" in words, "bottom" in words) == (y < 1 / 3, y > 2 / 3)


@pytest.mark.parametrize("shape", get_args(Shape))
def test_shapes_stay_whole_inside_the_picture(shape: Shape) -> None:
    for seed in range(20):
        mask = draw(replace(CIRCLE, shape=shape, place="bottom right"), seed=seed).parts["object"]
        assert not mask[-1].any()
        assert not mask[:, -1].any()


def test_all_shapes_differ() -> None:
    masks = {s: draw(replace(CIRCLE, shape=s)).parts["object"] for s in get_args(Shape)}
    for a, b in combinations(masks.values(), 2):
        assert (a ^ b).sum() > 0.15 * a.sum()


@pytest.mark.parametrize(
    ("texture", "share"),
    [("plain", 0.0), ("striped", 0.5), ("dotted", math.pi * 0.09), ("checkered", 0.5)],
)
def test_texture_marks_its_share_of_the_object_with_a_darker_shade(
    texture: str, share: float
) -> None:
    square = replace(CIRCLE, shape="square", texture=texture)  # type: ignore[arg-type]
    scene = draw(square, side=400)
    red = pixels(scene)[scene.parts["object"]][:, 0]
    assert (red < (220 + 99) / 2).mean() == pytest.approx(share, abs=0.06)


def test_one_changed_attribute_changes_its_part_alone() -> None:
    before = draw(CIRCLE, side=SIDE, seed=5)
    recoloured = draw(replace(CIRCLE, colour="blue"), side=SIDE, seed=5)
    around = binary_dilation(before.parts["object"])
    assert not (changed(before, recoloured) & ~around).any()
    assert changed(before, recoloured)[before.parts["object"]].all()
    assert np.array_equal(before.parts["object"], recoloured.parts["object"])


def test_painted_word_changes_its_part_alone() -> None:
    # On light grey both the black letters and their white outline differ from what was there.
    grey = replace(CIRCLE, background="light grey")
    plain, painted = draw(grey, side=SIDE), draw(replace(grey, word="STOP"), side=SIDE)
    word = painted.parts["word"]
    assert changed(plain, painted)[word].all()
    assert not (changed(plain, painted) & ~binary_dilation(word)).any()
    assert "word" not in plain.parts


@pytest.mark.parametrize("background", ["black", "white"])
def test_word_stands_out_from_its_background(background: str) -> None:
    scene = draw(replace(CIRCLE, background=background, word="STOP"))  # type: ignore[arg-type]
    grey = pixels(scene).mean(axis=2)
    far = np.abs(grey - grey[0, 0]) > 200
    assert far[scene.parts["word"]].mean() > 0.25  # the rest is its outline


def test_word_keeps_away_from_the_object() -> None:
    for place in get_args(Place):
        plain = replace(CIRCLE, place=place)
        painted = draw(replace(plain, word="STOP"))
        assert np.array_equal(draw(plain).parts["object"], painted.parts["object"])


def test_word_over_the_object_hides_it() -> None:
    tall = draw(replace(CIRCLE, word="STOP\nSTOP\nSTOP\nSTOP"), side=SIDE)
    hidden = draw(CIRCLE, side=SIDE).parts["object"] & ~tall.parts["object"]
    assert hidden.any()
    assert not (hidden & ~tall.parts["word"]).any()
    assert not (tall.parts["object"] & tall.parts["word"]).any()


def test_evidence_of_an_attribute_is_the_part_that_shows_it() -> None:
    scene = draw(replace(CIRCLE, word="STOP"))
    for attribute in asdict(CIRCLE):
        part = attribute if attribute in ("background", "word") else "object"
        assert scene.evidence(attribute) is scene.parts[part]  # type: ignore[index]


@pytest.mark.parametrize("attribute", ["word", "caption", "smell"])
def test_evidence_of_what_a_scene_lacks_is_refused(attribute: str) -> None:
    with pytest.raises(InvalidInputError, match=attribute):
        draw(CIRCLE).evidence(attribute)


def test_caption_of_every_scene_holds_its_attributes() -> None:
    for scene in scenes(50, 0, side=32):
        shown = {k: v for k, v in asdict(scene.attributes).items() if v not in (None, "plain")}
        assert all(value in scene.caption for value in shown.values())


def test_every_value_of_every_attribute_occurs_evenly() -> None:
    random = np.random.default_rng(0)
    drawn = [asdict(random_attributes(random)) for _ in range(4000)]
    names = {"shape": 8, "colour": 8, "texture": 4, "size": 2, "place": 9, "background": 8}
    for name, count in names.items():
        _, seen = np.unique([row[name] for row in drawn], return_counts=True)
        assert len(seen) == count
        assert seen.min() > 0.75 * 4000 / count
    words = [row["word"] for row in drawn]
    assert 1 - words.count(None) / 4000 == pytest.approx(0.25, abs=0.03)
    assert set(words) - {None} == set(planted_scenes.WORDS)


def test_colours_can_be_told_apart() -> None:
    names = [*COLOURS.values(), *BACKGROUNDS.values()]
    assert min(math.dist(a, b) for a, b in combinations(names, 2)) > 25
    assert min(math.dist(a, b) for a in COLOURS.values() for b in BACKGROUNDS.values()) > 60


def test_scenes_are_the_same_however_many_are_asked_for() -> None:
    few, many = list(scenes(3, 7, side=64)), list(islice(scenes(10**9, 7, side=64), 3))
    for a, b in zip(few, many, strict=True):
        assert a.attributes == b.attributes
        assert np.array_equal(pixels(a), pixels(b))


def test_scenes_of_one_run_differ_also_in_where_exactly_things_lie() -> None:
    drawn = list(scenes(30, 0, side=64))
    assert len({scene.caption for scene in drawn}) > 25
    moved = [(pixels(s) != pixels(draw(s.attributes, side=64, seed=0))).any() for s in drawn]
    assert sum(moved) > 15


def test_other_seeds_are_other_scenes() -> None:
    captions = [[scene.caption for scene in scenes(5, seed, side=32)] for seed in (0, 1)]
    assert captions[0] != captions[1]


def test_too_small_a_picture_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="31"):
        draw(CIRCLE, side=31)

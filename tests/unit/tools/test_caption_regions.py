"""What the demo's captioner learns from: regions of pictures, and their names."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from tools.demo import caption_regions
from tools.demo.caption_regions import GRID, Examples, Region, evidence_picture
from tools.demo.corpus_drawn import COLOURS
from vision_sae.pictures.scenes import Attributes, draw


def entry(file: str, caption: str, *tags: str) -> dict[str, object]:
    return {"file": file, "caption": caption, "tags": list(tags)}


def squares(size: tuple[int, int], ground: str, *boxes: tuple[int, int, int, int]) -> Image.Image:
    picture = Image.new("RGB", size, COLOURS[ground])
    for box in boxes:
        picture.paste((1, 255, 254), box)
    return picture


def found(picture: Image.Image, record: dict[str, object]) -> dict[str, Region]:
    return {r.names[0]: r for r in caption_regions._corpus_regions(0, record, picture)}


def test_a_drawing_alone_gives_the_whole_the_thing_and_the_ground() -> None:
    picture = squares((224, 224), "red", (0, 0, 112, 112))  # the upper left quarter
    record = entry("drawn/1f40b-noto.webp", "a whale on a red background", "animal", "wet")
    regions = found(picture, record)
    assert set(regions) == {"a whale on a red background", "a red background", "a whale"}
    assert regions["a whale on a red background"].tokens.all()
    quarter = np.zeros((GRID, GRID), dtype=np.bool_)
    quarter[:8, :8] = True
    assert np.array_equal(regions["a whale"].tokens, quarter.ravel())
    assert np.array_equal(regions["a red background"].tokens, ~quarter.ravel())
    assert regions["a whale"].themes == ("animal", "a whale")  # "wet" is no theme


def test_things_of_a_drawing_are_named_from_left_to_right() -> None:
    picture = squares((288, 224), "white", (0, 0, 72, 224), (216, 0, 288, 224))
    record = entry("drawn/scene-1-noto.webp", "a crutch and a monorail on a white background")
    regions = found(picture, record)
    crutch, monorail = (
        regions[name].tokens.reshape(GRID, GRID) for name in ("a crutch", "a monorail")
    )
    assert crutch.all(0).tolist() == [i < 4 for i in range(GRID)]
    assert monorail.all(0).tolist() == [i >= 12 for i in range(GRID)]
    assert not crutch[:, 4:].any()
    assert not monorail[:, :12].any()


@pytest.mark.parametrize("turn", [False, True])
def test_a_ground_of_two_colours_is_told_from_the_thing_on_it(turn: bool) -> None:
    ramp = Image.linear_gradient("L").resize((224, 224))
    ramp = ramp.transpose(Image.Transpose.ROTATE_90) if turn else ramp
    start, end = (Image.new("RGB", (224, 224), COLOURS[c]) for c in ("black", "teal"))
    picture = Image.composite(end, start, ramp)
    picture.paste("white", (112, 112, 224, 224))
    record = entry("drawn/1f40b-noto.webp", "a whale on a background fading from black to teal")
    tokens = found(picture, record)["a whale"].tokens.reshape(GRID, GRID)
    assert tokens[8:, 8:].all()
    assert tokens.sum() == 64


def test_a_photograph_is_captioned_as_a_whole() -> None:
    regions = found(squares((224, 160), "green"), entry("photographs/a.webp", "a nuthatch"))
    assert list(regions) == ["a nuthatch"]


def test_a_ground_that_is_not_where_the_caption_says_is_left_out() -> None:
    picture = squares((224, 224), "green")
    regions = found(picture, entry("photographs/a.webp", "a wombat on a red background"))
    assert list(regions) == ["a wombat on a red background"]


@pytest.mark.parametrize(
    ("text", "things"),
    [
        ("a crutch and a monorail", ("a crutch", "a monorail")),
        ("a mechanical arm, a red apple and a locomotive",
         ("a mechanical arm", "a red apple", "a locomotive")),
        ("something and a monorail", ()),
    ],
)  # fmt: skip
def test_concepts_are_read_from_a_caption(text: str, things: tuple[str, ...]) -> None:
    count = 2 if things == () else len(things)
    assert tuple(caption_regions._things(text, count)) == things


def test_a_composed_scene_names_its_parts() -> None:
    scene = draw(Attributes("star", "red", "striped", "large", "top", "white", word="SALE"))
    whole, thing, ground, word = caption_regions._scene_regions(7, scene)
    assert whole.names == (scene.caption,)
    assert thing.names == ("a red striped star", "a red star")
    assert thing.themes == ("red things", "stars", "red stars", "striped things", "striped stars")
    assert (ground.names, word.names) == (("a white background",), ("the word SALE",))
    assert word.themes == ("the word SALE", "words")
    assert {whole.picture, thing.picture, ground.picture, word.picture} == {7}
    assert not (thing.tokens & ground.tokens).any()


def region(picture: int, kind: str, name: str, *themes: str) -> Region:
    return Region(picture, np.ones(256, dtype=np.bool_), kind, (name,), themes)  # type: ignore[arg-type]


REGIONS = [
    *(region(i, "whole", f"picture {i}") for i in range(8)),
    *(region(i, "thing", f"a thing {i}", "red things") for i in range(6)),
    *(region(i, "ground", "a red background", "a red background") for i in range(4)),
    *(region(i, "word", "the word SALE", "words") for i in range(3)),
]


def test_examples_are_endless_and_always_the_same() -> None:
    one, other = Examples(REGIONS, seed=3), Examples(REGIONS, seed=3)
    captions = [one[i].caption for i in range(400)]
    assert captions == [other[i].caption for i in reversed(range(400))][::-1]
    alone = [one[i] for i in range(400) if len(one[i].regions) == 1]
    assert 0.38 < len(alone) / 400 < 0.52
    assert all(example.caption in example.regions[0].names for example in alone)
    assert captions != [Examples(REGIONS, seed=4)[i].caption for i in range(400)]


def test_most_regions_of_a_set_have_what_its_caption_says() -> None:
    examples = Examples(REGIONS, seed=3)
    sets = [e for e in (examples[i] for i in range(600)) if len(e.regions) > 1]
    named = Counter(e.caption for e in sets)
    assert set(named) == {"red things", "a red background", "words", caption_regions.NOTHING}
    told = [e for e in sets if e.caption != caption_regions.NOTHING]
    shared = [e.caption in r.themes for e in told for r in e.regions]
    assert 0.85 < np.mean(shared) < 1
    assert all(e.caption in e.regions[0].themes for e in told)


def test_pictures_to_learn_from_are_as_small_as_evidence() -> None:
    picture = evidence_picture(Image.new("RGBA", (320, 224), "red"))
    assert (picture.mode, picture.size) == ("RGB", (160, 112))

"""What the demo's captioner learns from: regions of pictures and what one may call them.

Pictures are those of the demo corpus and scenes composed of known parts. Most pictures of the
corpus show things on a ground whose colours their caption names, so the pixels that differ from
that ground are the things, from left to right as the caption lists them. A region is some of the
16 x 16 patch tokens of one picture. Several regions make an example too, with a caption of what
they have in common: a tag, a colour, a shape, a ground.
"""

from __future__ import annotations

import io
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vision_sae.demo.corpus_drawn import COLOURS, HEIGHT, WIDTH_BY_COUNT, read_concepts
from vision_sae.evaluation.planted_scenes import Scene, scenes

CORPUS = Path(__file__).parent / "corpus"
CONCEPTS = Path(__file__).parent / "concepts.jsonl"
GRID = 16
"""Patch tokens along each side of a picture."""
THUMBNAIL = 160
"""Longer side in pixels of the pictures that serve as evidence, and so of those to learn from."""
THEMES = (
    "face", "animal", "food", "person", "heart", "ball", "tool", "bird", "sport", "hand", "plant",
    "weather", "clothing", "game", "music", "fruit", "money", "sweet", "space", "flower", "ocean",
    "drink", "flag", "instrument", "car", "cat", "monster", "building", "weapon", "vehicle",
    "computer", "book", "clock", "tree", "fish", "insect", "star", "moon",
)  # fmt: skip
"""Tags of the corpus that may caption what several pictures have in common."""
NOTHING = "various things"
"""The caption of regions that have nothing in common."""

Split = Literal["train", "heldout"]
_SCENES: dict[Split, tuple[int, int]] = {"train": (320, 11), "heldout": (96, 12)}
"""How many composed scenes, and their seed."""
_DIFFERENT = 24
"""Difference of a channel, of 255, from which on a pixel is not of the ground."""
_ON_GROUND = re.compile(
    r"^(?P<things>.+) on an? (?:(?P<flat>.+) background"
    r"|background fading from (?P<start>.+) to (?P<end>.+))$"
)
_WHOLE = np.ones(GRID * GRID, dtype=np.bool_)

Tokens = NDArray[np.bool_]


class Region(NamedTuple):
    """Some patch tokens of one picture, and their names."""

    picture: int
    tokens: Tokens
    """Which of the `GRID` * `GRID` tokens, row by row; not empty."""
    kind: Literal["whole", "thing", "ground", "word"]
    names: tuple[str, ...]
    """Captions of the region alone."""
    themes: tuple[str, ...]
    """Captions that it shares with other regions."""


def evidence_picture(picture: Image.Image) -> Image.Image:
    """A picture as it is kept as evidence: a small JPEG."""
    small = picture.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    jpeg = io.BytesIO()
    small.save(jpeg, "JPEG", quality=85)
    return Image.open(jpeg).convert("RGB")


def pictures(split: Split) -> Iterator[Image.Image]:
    """Every picture of a split in the order that `regions` counts them."""
    for entry in _entries(split):
        with Image.open(CORPUS / split / entry["file"]) as file:
            yield evidence_picture(file)
    for scene in _scenes(split):
        yield evidence_picture(scene.image)


def regions(split: Split) -> list[Region]:
    """Every captioned region of a split."""
    found: list[Region] = []
    entries = _entries(split)
    for number, entry in enumerate(entries):
        with Image.open(CORPUS / split / entry["file"]) as file:
            found += _corpus_regions(number, entry, file.convert("RGB"))
    for number, scene in enumerate(_scenes(split), len(entries)):
        found += _scene_regions(number, scene)
    return found


@cache
def _entries(split: Split) -> list[dict[str, Any]]:
    lines = (CORPUS / split / "captions.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _scenes(split: Split) -> Iterator[Scene]:
    count, seed = _SCENES[split]
    return scenes(count, seed, side=HEIGHT)


def _tokens(pixels: NDArray[np.bool_], least: float) -> Tokens:
    """The tokens of which a share of at least ``least`` is ``pixels`` (height, width)."""
    image = Image.fromarray(pixels.astype(np.float32))
    cells = np.asarray(image.resize((GRID, GRID), Image.Resampling.BOX))
    return np.asarray(cells >= least, dtype=np.bool_).reshape(-1)


def _corpus_regions(number: int, entry: dict[str, Any], picture: Image.Image) -> Iterator[Region]:
    caption: str = entry["caption"]
    yield Region(number, _WHOLE, "whole", (caption,), ())
    match = _ON_GROUND.match(caption)
    ground = match and _ground(match, picture)
    if not match or ground is None:
        return
    tokens = _tokens(~ground, 0.05)
    if not tokens.all():
        if match["flat"]:
            name = f"{_article(match['flat'])} {match['flat']} background"
            yield Region(number, ~tokens, "ground", (name,), (name,))
        else:
            name = f"a background fading from {match['start']} to {match['end']}"
            yield Region(number, ~tokens, "ground", (name,), ())
    drawn = entry["file"].startswith("drawn/")
    count = {width: n for n, width in WIDTH_BY_COUNT.items()}[picture.width] if drawn else 1
    themes = tuple(tag for tag in entry["tags"] if tag in THEMES) if count == 1 else ()
    column = np.arange(picture.width) * count // picture.width
    for i, thing in enumerate(_things(match["things"], count)):
        tokens = _tokens(~ground & (column == i), 0.3)
        if tokens.any():
            yield Region(number, tokens, "thing", (thing,), (*themes, thing))


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _ground(match: re.Match[str], picture: Image.Image) -> NDArray[np.bool_] | None:
    """Which pixels (height, width) show the ground that a caption names; None if most do not."""
    if match["flat"]:
        if match["flat"] not in COLOURS:
            return None
        grounds = [Image.new("RGB", picture.size, COLOURS[match["flat"]])]
    else:
        start, end = (Image.new("RGB", picture.size, COLOURS[match[e]]) for e in ("start", "end"))
        ramp = Image.linear_gradient("L")
        turned = (ramp, ramp.transpose(Image.Transpose.ROTATE_90))
        grounds = [Image.composite(end, start, mask.resize(picture.size)) for mask in turned]
    pixels = np.asarray(picture).astype(np.int16)
    masks = [np.abs(pixels - np.asarray(g)).max(-1) < _DIFFERENT for g in grounds]
    best = max(masks, key=lambda mask: mask.mean())
    return best if best.mean() > 0.1 else None


@cache
def _phrases() -> frozenset[str]:
    return frozenset(concept.phrase for concept in read_concepts(CONCEPTS))


def _things(text: str, count: int) -> Sequence[str]:
    """The ``count`` concepts that a caption lists: "a, b and c"; none if it cannot be told."""
    if count == 1:
        return (text,)
    separator = " and " if count == 2 else ", "
    for found in re.finditer(separator, text):
        first, rest = text[: found.start()], text[found.end() :]
        others = _things(rest, count - 1)
        if first in _phrases() and others and set(others) <= _phrases():
            return (first, *others)
    return ()


def _plural(shape: str) -> str:
    return f"{shape}es" if shape == "cross" else f"{shape}s"


def _scene_regions(number: int, scene: Scene) -> Iterator[Region]:
    shown, parts = scene.attributes, scene.parts
    yield Region(number, _WHOLE, "whole", (scene.caption,), ())
    names = (f"a {shown.colour} {shown.textured}", f"a {shown.colour} {shown.shape}")
    shapes = _plural(shown.shape)
    themes = [f"{shown.colour} things", shapes, f"{shown.colour} {shapes}"]
    if shown.texture != "plain":
        themes += [f"{shown.texture} things", f"{shown.texture} {shapes}"]
    tokens = _tokens(parts["object"], 0.3)
    if tokens.any():
        yield Region(number, tokens, "thing", names, tuple(themes))
    ground = f"a {shown.background} background"
    yield Region(number, _tokens(parts["background"], 0.95), "ground", (ground,), (ground,))
    if shown.word:
        word = f"the word {shown.word}"
        tokens = _tokens(parts["word"], 0.3)
        if tokens.any():
            yield Region(number, tokens, "word", (word,), (word, "words"))


class Example(NamedTuple):
    """What one step of training shows: some regions and one caption of them all."""

    regions: tuple[Region, ...]
    caption: str


_KINDS = {"whole": 0.35, "thing": 0.4, "ground": 0.2, "word": 0.05}
"""How often each kind is captioned alone."""
_ALONE = 0.45
_ASTRAY = 0.1
"""Share of examples of one region, and of regions in a set that do not belong to it."""
_LARGEST_SET = 8


class Examples:
    """Endless examples of a split; example i is always the same."""

    def __init__(self, found: Sequence[Region], seed: int) -> None:
        self._seed = seed
        self._regions = list(found)
        self._by_kind: dict[str, list[Region]] = defaultdict(list)
        members: dict[str, list[Region]] = defaultdict(list)
        for region in found:
            self._by_kind[region.kind].append(region)
            for theme in region.themes:
                members[theme].append(region)
        self._groups: dict[str, list[tuple[str, list[Region]]]] = defaultdict(list)
        for theme, some in members.items():
            if len(some) >= 2:
                self._groups[_theme_kind(theme, some)].append((theme, some))

    def __getitem__(self, index: int) -> Example:
        random = np.random.default_rng([self._seed, index])
        if random.random() < _ALONE:
            kind = random.choice(list(_KINDS), p=list(_KINDS.values()))
            region = self._any(self._by_kind[kind], random)
            return Example((region,), region.names[random.integers(len(region.names))])
        count = int(random.integers(2, _LARGEST_SET + 1))
        if random.random() < 0.06:
            things = self._by_kind["thing"]
            return Example(tuple(self._any(things, random) for _ in range(count)), NOTHING)
        kinds = list(self._groups)
        groups = self._groups[kinds[random.integers(len(kinds))]]
        theme, members = groups[random.integers(len(groups))]
        chosen = random.permutation(len(members))[:count]
        astray = random.random(len(chosen)) < _ASTRAY
        astray[0] = False
        shown = [
            self._any(self._regions, random) if wrong else members[i]
            for i, wrong in zip(chosen, astray, strict=True)
        ]
        return Example(tuple(shown), theme)

    @staticmethod
    def _any(some: Sequence[Region], random: np.random.Generator) -> Region:
        return some[int(random.integers(len(some)))]


def _theme_kind(theme: str, members: Sequence[Region]) -> str:
    """Themes are drawn by kind first, so that a kind of many themes does not crowd out others."""
    if members[0].kind != "thing":
        return members[0].kind
    if theme in THEMES:
        return "tag"
    if theme in members[0].names:
        return "concept"
    return "attribute" if theme.endswith(" things") or " " not in theme else "combination"

"""Training data of the demo's captioner: regions of pictures with captions.

The pictures are the demo corpus and scenes composed of known parts. Most pictures of the corpus
show things on a ground whose colours the caption names. Pixels that differ from the ground are the
things, from left to right in the caption's order. A region is a set of the 16 x 16 patch tokens of
one picture. Several regions also form an example, captioned by their common property: a tag, a
colour, a shape or a ground.
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

from tools.demo.corpus_drawn import COLOURS, HEIGHT, WIDTH_BY_COUNT, read_concepts
from vision_sae.demo import CORPUS
from vision_sae.pictures.scenes import Scene, scenes

CONCEPTS = Path(__file__).parent / "concepts.jsonl"
GRID = 16
"""Patch tokens along each side of a picture."""
THUMBNAIL = 160
"""Longer side in pixels of evidence pictures, and therefore of training pictures."""
THEMES = (
    "face", "animal", "food", "person", "heart", "ball", "tool", "bird", "sport", "hand", "plant",
    "weather", "clothing", "game", "music", "fruit", "money", "sweet", "space", "flower", "ocean",
    "drink", "flag", "instrument", "car", "cat", "monster", "building", "weapon", "vehicle",
    "computer", "book", "clock", "tree", "fish", "insect", "star", "moon",
)  # fmt: skip
"""Tags of the corpus that may caption several pictures together."""
NOTHING = "various things"
"""The caption of regions without a common property."""

Split = Literal["train", "heldout"]
_SCENES: dict[Split, tuple[int, int]] = {"train": (320, 11), "heldout": (96, 12)}
"""Number and seed of the composed scenes."""
_DIFFERENT = 24
"""Channel difference, of 255, above which a pixel does not belong to the ground."""
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
    """Indices among the `GRID` * `GRID` tokens, row by row; not empty."""
    kind: Literal["whole", "thing", "ground", "word"]
    names: tuple[str, ...]
    """Captions of the region alone."""
    themes: tuple[str, ...]
    """Captions that the region shares with other regions."""


def evidence_picture(picture: Image.Image) -> Image.Image:
    """A picture reduced to the small JPEG of evidence."""
    small = picture.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    jpeg = io.BytesIO()
    small.save(jpeg, "JPEG", quality=85)
    return Image.open(jpeg).convert("RGB")


def pictures(split: Split) -> Iterator[Image.Image]:
    """Every picture of a split, in the order of the numbers in `regions`."""
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
    """The tokens with at least a share ``least`` of their pixels in ``pixels`` (H, W)."""
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
    """The pixels (H, W) of the ground that a caption names; None if they are a minority."""
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
    """The ``count`` concepts that a caption lists ("a, b and c"); empty if they cannot be
    parsed."""
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
    """One training example: some regions and one caption of all of them."""

    regions: tuple[Region, ...]
    caption: str


_KINDS = {"whole": 0.35, "thing": 0.4, "ground": 0.2, "word": 0.05}
"""Relative frequency of each kind in examples of one region."""
_ALONE = 0.45
_ASTRAY = 0.1
"""Share of examples with one region, and share of foreign regions within a set."""
_LARGEST_SET = 8


class Examples:
    """Endless examples of a split; example i is always the same."""

    def __init__(self, regions: Sequence[Region], seed: int) -> None:
        self._seed = seed
        self._regions = list(regions)
        self._by_kind: dict[str, list[Region]] = defaultdict(list)
        members: dict[str, list[Region]] = defaultdict(list)
        for region in regions:
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

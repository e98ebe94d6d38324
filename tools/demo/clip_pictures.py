"""The captioned pictures that the demo CLIP is trained on, composed from figures.

Every picture has its own seed and is painted on demand. There are single
figures and pairs on many grounds, coloured shapes and textures, composed scenes captioned by all
their attributes, figures with a word painted over them (captioned by the drawing or by the
word), and the photographs of the demo corpus except the Tux Paint stamps, which are the test data.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tools.demo.clip_figures import Figure, Taboo
from tools.demo.clip_grounds import SIDE, Ground, Grounds, colour_phrase, crop, flat, texture
from tools.demo.corpus_drawn import COLOURS
from vision_sae.demo import CORPUS
from vision_sae.pictures.scenes import Attributes, draw, random_attributes

TEST_SOURCE = "tuxpaint-stamps-default"
"""The package whose pictures are excluded from training."""
SHAPES = ("circle", "square", "triangle", "diamond", "ring", "cross", "bar", "dot")
Kind = Literal["figure", "pair", "word", "shape", "texture", "scene", "photograph"]
_COARSE = 64
"""Side of the coarse scenes."""
_PALE = ("white", "light grey", "beige", "light green", "light blue", "yellow", "pink")


@dataclass(frozen=True)
class Picture:
    """One training picture, decided but not yet painted."""

    subject: str
    """Key of the content: training never contrasts two pictures of one subject."""
    captions: tuple[str, ...]
    """True captions, the plainest first."""
    paint: Callable[[], Image.Image]
    """-> RGB, 224 x 224."""
    kind: Kind
    sources: tuple[str, ...] = ()
    """The drawings or the photograph in the picture; empty for a picture that is its own source."""


def plan(figures: Sequence[Figure], taboo: Taboo, seed: int) -> list[Picture]:
    """All training pictures in shuffled order, without ``taboo`` concepts."""
    allowed = [figure for figure in taboo.allowed(figures) if figure.rounds > 0]
    photographs = [*_photographs(taboo)]
    grounds = Grounds([path for path, _, _ in photographs])
    rng = random.Random(seed)
    pictures = [
        *(_single(figure, grounds.plain, rng.random(), (0.75, 0.98)) for figure in allowed),
        *(
            _single(figure, grounds.any, rng.random(), (0.45, 0.98))
            for figure in allowed
            for _ in range(figure.rounds)
        ),
        *_pairs(allowed, grounds, rng, count=2600),
        *_painted_words(allowed, taboo, grounds, rng, count=1600),
        *_shapes(rng, count=900),
        *_textures(rng, count=500),
        *composed_scenes(rng, count=3000),
        *(_photograph(*photograph, rng.random()) for photograph in photographs * 3),
    ]
    rng.shuffle(pictures)
    return pictures


def _captions(figure: Figure, phrase: str, ground: str) -> tuple[str, ...]:
    behind = f" on {ground}" if ground else ""
    tags = [tag for tag in figure.tags if tag not in figure.name]
    described = (f"{phrase}, {', '.join(tags[:3])}",) if tags else ()
    return (phrase, f"{phrase}{behind}", *described, *tags[:6])


def _single(
    figure: Figure, ground: Callable[..., Ground], seed: float, sizes: tuple[float, float]
) -> Picture:
    """A figure alone on a ground, its size a share of the picture between ``sizes``."""

    def decide() -> tuple[str | None, random.Random, Ground]:
        rng = random.Random(seed)
        tint = rng.choice([c for c in COLOURS if c not in _PALE]) if figure.tinted else None
        look = random.Random(rng.random())
        return tint, look, ground(random.Random(look.random()), avoid=tint)

    def paint() -> Image.Image:
        tint, look, behind = decide()
        picture = behind.paint()
        size = look.uniform(*sizes)
        _lay(figure.draw(tint), picture, size, look.random(), look.random(), look)
        return picture

    tint, _, behind = decide()
    captions = _captions(figure, figure.phrase, behind.name)
    if tint:
        captions = (f"{colour_phrase(tint)} {figure.name}", *captions)
    return Picture(figure.name, captions, paint, "figure", (figure.origin,))


def _lay(
    drawn: Image.Image,
    picture: Image.Image,
    size: float,
    across: float,
    down: float,
    rng: random.Random,
    box: tuple[int, int, int, int] = (0, 0, SIDE, SIDE),
) -> None:
    """Paste a drawing into ``box``, ``size`` of its shorter side large; sometimes mirrored,
    slightly turned or coarse."""
    left, top, right, bottom = box
    scale = size * min(right - left, bottom - top) / max(drawn.size)
    if rng.random() < 0.25:  # as coarse as a small icon that was enlarged
        small = rng.choice((48, 64, 96)) / max(drawn.size)
        if small < scale:
            drawn = _resized(drawn, small)
            scale /= small
    if rng.random() < 0.3:
        drawn = drawn.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    drawn = _resized(drawn, scale)
    if rng.random() < 0.2:
        drawn = drawn.rotate(rng.uniform(-20, 20), Image.Resampling.BICUBIC)
    x = left + round(across * (right - left - drawn.width))
    y = top + round(down * (bottom - top - drawn.height))
    picture.paste(drawn, (x, y), drawn)


def _resized(drawn: Image.Image, scale: float) -> Image.Image:
    size = (max(1, round(drawn.width * scale)), max(1, round(drawn.height * scale)))
    return drawn.resize(size, Image.Resampling.LANCZOS)


def _pairs(
    figures: Sequence[Figure], grounds: Grounds, rng: random.Random, count: int
) -> Iterator[Picture]:
    for _ in range(count):
        left, right = rng.sample(figures, 2)
        yield _pair(left, right, grounds, rng.random())


def _pair(left: Figure, right: Figure, grounds: Grounds, seed: float) -> Picture:
    ground = grounds.any(random.Random(seed))
    both = f"{left.phrase} and {right.phrase}"
    behind = f" on {ground.name}" if ground.name else ""
    aside = f"{left.phrase} on the left and {right.phrase} on the right"
    captions = (both, f"{both}{behind}", f"{right.phrase} and {left.phrase}", aside)

    def paint() -> Image.Image:
        look = random.Random(seed)
        picture = ground.paint()
        for index, figure in enumerate((left, right)):
            tint = "black" if figure.tinted else None
            box = (index * SIDE // 2, 0, (index + 1) * SIDE // 2, SIDE)
            _lay(figure.draw(tint), picture, look.uniform(0.7, 1), 0.5, look.random(), look, box)
        return picture

    sources = (left.origin, right.origin)
    return Picture(f"{left.name} + {right.name}", captions, paint, "pair", sources)


def _painted_words(
    figures: Sequence[Figure], taboo: Taboo, grounds: Grounds, rng: random.Random, count: int
) -> Iterator[Picture]:
    emoji = [figure for figure in figures if figure.rounds == 2]
    short = {figure.name for figure in emoji if len(figure.name) < 13}
    words = sorted(name for name in short if not taboo.says(name))
    for number in range(count):
        word = rng.choice(words)
        # A quarter shows the word alone; of the rest, the caption tells what is drawn.
        figure = None if number % 4 == 0 else rng.choice(emoji)
        yield _painted_word(word, figure, grounds, rng.random())


def _painted_word(word: str, figure: Figure | None, grounds: Grounds, seed: float) -> Picture:
    said, ground = f'the word "{word}"', grounds.any(random.Random(seed))
    if figure is None:
        captions: tuple[str, ...] = (said, f"a sign that says {word}")
    else:
        captions = (figure.phrase, figure.phrase, f"{figure.phrase} and {said}")

    def paint() -> Image.Image:
        look = random.Random(seed)
        picture = ground.paint()
        if figure is not None:
            _lay(figure.draw("black"), picture, look.uniform(0.6, 0.95), 0.5, look.random(), look)
        return paint_word(picture, word, look, large=figure is None)

    subject = said if figure is None else figure.name
    return Picture(subject, captions, paint, "word", (figure.origin,) if figure else ())


def paint_word(
    picture: Image.Image, word: str, rng: random.Random, *, large: bool = False
) -> Image.Image:
    """A copy of ``picture`` with ``word`` painted over it, mostly on a label."""
    copy = picture.copy()
    pen = ImageDraw.Draw(copy)
    size = rng.uniform(0.16, 0.3 if large else 0.22) * copy.height
    font = ImageFont.load_default(size)
    width, height = pen.textbbox((0, 0), word, font=font)[2:]
    if width > 0.94 * copy.width:
        font = ImageFont.load_default(size * 0.94 * copy.width / width)
        width, height = pen.textbbox((0, 0), word, font=font)[2:]
    x = rng.uniform(0.03 * copy.width, 0.97 * copy.width - width)
    y = rng.uniform(0, 0.97 * copy.height - height)
    ink, label = rng.choice((("black", "white"), ("white", "black"), ("black", "yellow")))
    if rng.random() < 0.7:
        pen.rectangle((x - 5, y - 2, x + width + 5, y + height + 5), fill=COLOURS[label])
    pen.text((x, y), word, font=font, fill=COLOURS[ink])
    return copy


def _shapes(rng: random.Random, count: int) -> Iterator[Picture]:
    for _ in range(count):
        shape, (ink, paper) = rng.choice(SHAPES), rng.sample(list(COLOURS), 2)
        yield _shape(shape, ink, paper, rng.random())


def _shape(shape: str, ink: str, paper: str, seed: float) -> Picture:
    phrase = f"{colour_phrase(ink)} {shape}"
    captions = (f"{phrase} on {colour_phrase(paper)} background", phrase, f"something {ink}")

    def paint() -> Image.Image:
        rng = random.Random(seed)
        picture = flat(paper)
        pen, colour = ImageDraw.Draw(picture), COLOURS[ink]
        r = rng.uniform(0.1, 0.16) * SIDE if shape == "dot" else rng.uniform(0.2, 0.45) * SIDE
        x, y = rng.uniform(r, SIDE - r), rng.uniform(r, SIDE - r)
        box = (x - r, y - r, x + r, y + r)
        if shape in ("circle", "dot"):
            pen.ellipse(box, fill=colour)
        elif shape == "ring":
            pen.ellipse(box, outline=colour, width=round(r / 3))
        elif shape == "square":
            pen.rectangle(box, fill=colour)
        elif shape == "triangle":
            pen.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=colour)
        elif shape == "diamond":
            pen.polygon([(x, y - r), (x - r, y), (x, y + r), (x + r, y)], fill=colour)
        else:
            pen.rectangle((x - r, y - r / 4, x + r, y + r / 4), fill=colour)
            if shape == "cross":
                pen.rectangle((x - r / 4, y - r, x + r / 4, y + r), fill=colour)
        return picture

    return Picture(captions[0], captions, paint, "shape")


def _textures(rng: random.Random, count: int) -> Iterator[Picture]:
    for _ in range(count):
        first, second = rng.sample(list(COLOURS), 2)
        found = texture(first, second, rng)
        captions = (found.name, f"a pattern of {found.name}")
        yield Picture(found.name, captions, found.paint, "texture")


def composed_scenes(rng: random.Random, count: int) -> Iterator[Picture]:
    """Scenes of `vision_sae.pictures.scenes`, every third of them coarse."""
    for _ in range(count):
        attributes = random_attributes(np.random.default_rng(rng.getrandbits(63)))
        side = rng.choice((_COARSE, SIDE, SIDE))
        yield _scene(attributes, side, rng.getrandbits(31))


def _scene(attributes: Attributes, side: int, seed: int) -> Picture:
    thing = f"a {attributes.colour} {attributes.textured}"
    captions = (attributes.caption, f"{thing} on a {attributes.background} background", thing)

    def paint() -> Image.Image:
        drawn = draw(attributes, side=side, seed=seed).image
        return drawn.resize((SIDE, SIDE), Image.Resampling.BICUBIC)

    return Picture(captions[0], captions, paint, "scene")


def _photographs(taboo: Taboo) -> Iterator[tuple[Path, str, str]]:
    """(file, caption, source) of the corpus's photographs outside the test."""
    lines = (CORPUS / "train/captions.jsonl").read_text("utf-8").splitlines()
    for entry in map(json.loads, lines):
        photograph = entry["file"].startswith("photographs/")
        tested = entry["source"].startswith(TEST_SOURCE) or taboo.says(entry["caption"])
        if photograph and not tested:
            yield CORPUS / "train" / entry["file"], entry["caption"], entry["source"]


def _photograph(path: Path, caption: str, source: str, seed: float) -> Picture:
    def paint() -> Image.Image:
        rng = random.Random(seed)
        picture = crop(path, rng)
        mirrored = rng.random() < 0.5
        return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else picture

    captions = (caption, f"a photograph of {caption}")
    return Picture(caption, captions, paint, "photograph", (source,))


def on_white(figure: Figure, *, size: float = 0.9) -> Image.Image:
    """A single figure in the middle of a white ground, as in the test pack."""
    picture = flat("white")
    drawn = figure.draw("black" if figure.tinted else None)
    drawn = _resized(drawn, size * SIDE / max(drawn.size))
    corner = ((SIDE - drawn.width) // 2, (SIDE - drawn.height) // 2)
    picture.paste(drawn, corner, drawn)
    return picture

"""Drawn pictures: emoji alone or two to three together, on plain or two-colour backgrounds.

`concepts.jsonl` lists the concepts, one a line: the emoji's code point, the phrase a caption
calls it by, and the split it belongs to. A concept occurs in the pictures of one split only.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

from PIL import Image

from tools.demo.corpus_packages import FLUENT, NOTO, Package

HEIGHT = 224
WIDTH_BY_COUNT = {1: 224, 2: 288, 3: 320}
COLOURS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "black": (12, 12, 14),
    "light grey": (211, 213, 216),
    "dark grey": (72, 75, 80),
    "red": (206, 44, 44),
    "pink": (250, 186, 204),
    "orange": (246, 150, 48),
    "yellow": (252, 222, 84),
    "beige": (238, 224, 196),
    "brown": (121, 82, 52),
    "green": (64, 152, 78),
    "light green": (188, 228, 178),
    "teal": (38, 142, 142),
    "light blue": (176, 216, 244),
    "blue": (44, 98, 198),
    "dark blue": (22, 36, 86),
    "purple": (124, 74, 172),
}
SHARE_WHITE = 0.3
SHARE_FLAT = 0.4  # what neither white nor flat takes is gradients
SHARE_FLUENT = 0.68  # the rest is Noto, enlarged from 64 px and so softer
SHARE_PAIRS = 0.65  # of the scenes; the rest shows three emoji


@dataclass(frozen=True)
class Concept:
    """One line of `concepts.jsonl`."""

    code: str  # Unicode code points in hexadecimal, joined by "-"
    phrase: str  # with its article: "a red apple"
    split: str  # "train" or "heldout"


@dataclass(frozen=True)
class Maker:
    """One maker's emoji: a package and where in it they lie."""

    name: str
    package: Package
    folder: str
    suffix: str


MAKERS = (
    Maker("fluent", FLUENT, "package/assets", ".webp"),
    Maker("noto", NOTO, "package/img/google/64", ".png"),
)


@dataclass(frozen=True)
class Drawing:
    """One drawn picture, decided but not yet painted."""

    name: str
    maker: Maker
    concepts: tuple[Concept, ...]
    background: tuple[str, ...]  # one colour, or the two ends of a gradient
    vertical: bool  # the direction of a gradient
    sizes: tuple[float, ...]  # of each emoji, as a share of its cell
    heights: tuple[float, ...]  # of each emoji: 0 touches the lower edge, 1 the upper

    @property
    def caption(self) -> str:
        """Everything the picture shows and what it lies on, as one phrase."""
        *others, last = [concept.phrase for concept in self.concepts]
        things = f"{', '.join(others)} and {last}" if others else last
        if len(self.background) == 1:
            colour = self.background[0]
            article = "an" if colour == "orange" else "a"
            return f"{things} on {article} {colour} background"
        start, end = self.background
        return f"{things} on a background fading from {start} to {end}"


class EmojiFiles:
    """The unpacked emoji of each maker, looked up by code point."""

    def __init__(self, roots: Mapping[str, Path]) -> None:
        self._roots = roots
        self._paths = {
            maker.name: {
                plain_code(path.stem): path
                for path in (roots[maker.name] / maker.folder).glob(f"*{maker.suffix}")
            }
            for maker in MAKERS
        }

    def has(self, maker: Maker, concept: Concept) -> bool:
        """Whether `maker` drew `concept`: neither maker drew them all."""
        return plain_code(concept.code) in self._paths[maker.name]

    def path(self, maker: Maker, concept: Concept) -> Path:
        """Where the picture of `concept` by `maker` lies."""
        return self._paths[maker.name][plain_code(concept.code)]

    def source(self, maker: Maker, concept: Concept) -> str:
        """The package and the path inside it, for the captions file."""
        inside = self.path(maker, concept).relative_to(self._roots[maker.name] / "package")
        return f"{maker.package.name}/{inside}"


def plain_code(code: str) -> str:
    """One spelling of a code: makers differ in case and in the presentation mark FE0F."""
    return code.lower().replace("-fe0f", "")


def read_concepts(path: Path) -> list[Concept]:
    """Every concept of the list, in its order."""
    return [Concept(**json.loads(line)) for line in path.read_text("utf-8").splitlines()]


def plan(
    concepts: Sequence[Concept],
    emoji: EmojiFiles,
    *,
    singles: int,
    scenes: int,
    rng: random.Random,
) -> Iterator[Drawing]:
    """Decide the drawings of one split: first the emoji alone, then the scenes.

    Scenes begin with the concepts that got no picture of their own, so that none is left out.
    """
    order = list(concepts)
    rng.shuffle(order)
    for concept in islice(cycle(order), singles):
        maker = _choose_maker((concept,), emoji, rng)
        name = f"{plain_code(concept.code)}-{maker.name}"
        yield _compose(name, maker, (concept,), rng, sizes=(0.6, 0.95))
    queue = cycle(order[singles:] + order[:singles])
    for number in range(scenes):
        count = 2 if rng.random() < SHARE_PAIRS else 3
        together = tuple(islice(queue, count))
        maker = _choose_maker(together, emoji, rng)
        yield _compose(f"scene-{number:04d}-{maker.name}", maker, together, rng, sizes=(0.55, 1.0))


def _choose_maker(concepts: tuple[Concept, ...], emoji: EmojiFiles, rng: random.Random) -> Maker:
    """One maker for the whole picture: it keeps the style whole and the licence single."""
    fluent, noto = MAKERS
    preferred, other = (fluent, noto) if rng.random() < SHARE_FLUENT else (noto, fluent)
    return preferred if all(emoji.has(preferred, concept) for concept in concepts) else other


def _compose(
    name: str,
    maker: Maker,
    concepts: tuple[Concept, ...],
    rng: random.Random,
    *,
    sizes: tuple[float, float],
) -> Drawing:
    return Drawing(
        name=name,
        maker=maker,
        concepts=concepts,
        background=_choose_background(rng),
        vertical=rng.random() < 0.5,
        sizes=tuple(rng.uniform(*sizes) for _ in concepts),
        heights=tuple(rng.uniform(0.2, 0.8) for _ in concepts),
    )


def _choose_background(rng: random.Random) -> tuple[str, ...]:
    draw = rng.random()
    if draw < SHARE_WHITE:
        return ("white",)
    if draw < SHARE_WHITE + SHARE_FLAT:
        return (rng.choice([colour for colour in COLOURS if colour != "white"]),)
    return tuple(rng.sample(list(COLOURS), 2))


def paint(drawing: Drawing, emoji: EmojiFiles) -> Image.Image:
    """Lay the emoji, each in its own cell of equal width, over the background."""
    count = len(drawing.concepts)
    width = WIDTH_BY_COUNT[count]
    picture = _background(drawing, width)
    cell = width // count
    placements = zip(drawing.concepts, drawing.sizes, drawing.heights, strict=True)
    for index, (concept, size, height) in enumerate(placements):
        with Image.open(emoji.path(drawing.maker, concept)) as file:
            side = round(size * min(cell, HEIGHT))
            figure = file.convert("RGBA").resize((side, side), Image.Resampling.LANCZOS)
        left = index * cell + (cell - side) // 2
        top = round((1 - height) * (HEIGHT - side))
        picture.paste(figure, (left, top), figure)
    return picture


def _background(drawing: Drawing, width: int) -> Image.Image:
    start = Image.new("RGB", (width, HEIGHT), COLOURS[drawing.background[0]])
    if len(drawing.background) == 1:
        return start
    end = Image.new("RGB", (width, HEIGHT), COLOURS[drawing.background[1]])
    ramp = Image.linear_gradient("L")  # black above, white below
    if not drawing.vertical:
        ramp = ramp.transpose(Image.Transpose.ROTATE_90)  # black on the left
    return Image.composite(end, start, ramp.resize((width, HEIGHT)))

"""Grounds of the demo CLIP's training pictures: colours, gradients, textures, photographs."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from tools.demo.corpus_drawn import COLOURS

SIDE = 224
_KINDS = ("stripes", "horizontal stripes", "diagonal stripes", "dots", "checks", "grid")
_STEPS = (14, 20, 28, 40)


@dataclass(frozen=True)
class Ground:
    """One ground, decided but not yet painted."""

    name: str
    """The ground's name in captions, or ""."""
    paint: Callable[[], Image.Image]
    """-> RGB, `SIDE` x `SIDE`, a picture of its own each time."""


def colour_phrase(colour: str) -> str:
    """ "orange" -> "an orange"."""
    return f"{'an' if colour[0] in 'aeio' else 'a'} {colour}"


def flat(colour: str) -> Image.Image:
    """One colour."""
    return Image.new("RGB", (SIDE, SIDE), COLOURS[colour])


def gradient(start: str, end: str, *, turned: bool) -> Image.Image:
    """From one colour above to another below, or from left to right when ``turned``."""
    ramp = Image.linear_gradient("L").resize((SIDE, SIDE))
    ramp = ramp.transpose(Image.Transpose.ROTATE_90) if turned else ramp
    return Image.composite(flat(end), flat(start), ramp)


def texture(first: str, second: str, rng: random.Random) -> Ground:
    """Stripes, dots, checks or a grid in two colours."""
    kind, step = rng.choice(_KINDS), rng.choice(_STEPS)
    if kind == "dots":
        name = f"{second} dots on {first}"
    elif kind == "horizontal stripes":
        name = f"horizontal {first} and {second} stripes"
    else:
        name = f"{first} and {second} {kind}"
    return Ground(name, lambda: _texture(kind, step, first, second))


def _texture(kind: str, step: int, first: str, second: str) -> Image.Image:
    picture, ink = flat(first), COLOURS[second]
    pen = ImageDraw.Draw(picture)
    for i in range(-SIDE, SIDE, step):
        if kind.endswith("stripes") and kind != "diagonal stripes":
            pen.rectangle((i, 0, i + step // 2, SIDE), fill=ink)
        elif kind == "diagonal stripes":
            pen.line((i, 0, i + SIDE, SIDE), fill=ink, width=step // 3)
        elif kind == "grid":
            pen.line((i, 0, i, SIDE), fill=ink, width=2)
            pen.line((0, i, SIDE, i), fill=ink, width=2)
        for j in range(0, SIDE, step) if kind in ("dots", "checks") else ():
            if kind == "dots":
                pen.ellipse((i, j, i + step // 2, j + step // 2), fill=ink)
            elif (i + j) // step % 2:
                pen.rectangle((i, j, i + step - 1, j + step - 1), fill=ink)
    return picture.rotate(90) if kind == "horizontal stripes" else picture


def crop(path: Path, rng: random.Random) -> Image.Image:
    """A square part of a photograph, at most as large as its height."""
    with Image.open(path) as file:
        picture = file.convert("RGB")
    side = min(picture.size) * rng.uniform(0.6, 1)
    left, top = rng.uniform(0, picture.width - side), rng.uniform(0, picture.height - side)
    box = (left, top, left + side, top + side)
    return picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box)


class Grounds:
    """Draws grounds; photographs are among them."""

    def __init__(self, photographs: Sequence[Path]) -> None:
        self._photographs = photographs

    def plain(self, rng: random.Random, avoid: str | None = None) -> Ground:
        """White, or rarely another colour or a gradient."""
        return self._colours(rng, avoid, white=0.65, flat_colour=0.25)

    def any(self, rng: random.Random, avoid: str | None = None) -> Ground:
        """One ground of any kind; ``avoid`` is the colour that would hide the figure."""
        draw = rng.random()
        if draw < 0.72 or not self._photographs:
            return self._colours(rng, avoid, white=0.42, flat_colour=0.41)
        if draw < 0.86:
            first, second = rng.sample(_others(avoid), 2)
            found = texture(first, second, rng)
            return Ground(f"a background of {found.name}", found.paint)
        path, seed = rng.choice(self._photographs), rng.random()
        return Ground("", lambda: crop(path, random.Random(seed)))

    def _colours(
        self, rng: random.Random, avoid: str | None, *, white: float, flat_colour: float
    ) -> Ground:
        """White or one colour with these chances, else a gradient."""
        draw = rng.random()
        if draw < white + flat_colour:
            colour = "white" if draw < white else rng.choice(_others(avoid))
            return Ground(f"{colour_phrase(colour)} background", lambda: flat(colour))
        start, end = rng.sample(_others(avoid), 2)
        turned = rng.random() < 0.5
        name = f"a background fading from {start} to {end}"
        return Ground(name, lambda: gradient(start, end, turned=turned))


def _others(colour: str | None) -> list[str]:
    return [name for name in COLOURS if name != colour]

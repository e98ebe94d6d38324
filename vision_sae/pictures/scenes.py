"""Pictures composed of known parts: the ground truth of labels, attributions and steering.

A scene is one object on a plain background, and sometimes a painted word. A small record of
attributes describes the scene, and every pixel belongs to exactly one part, whose mask is known.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFont

from vision_sae.errors import InvalidInputError

Shape = Literal["circle", "square", "triangle", "star", "heart", "cross", "ring", "diamond"]
Colour = Literal["red", "orange", "yellow", "green", "blue", "purple", "pink", "brown"]
Texture = Literal["plain", "striped", "dotted", "checkered"]
Size = Literal["small", "large"]
Place = Literal[
    "top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom",
    "bottom right",
]  # fmt: skip
Background = Literal[
    "white", "black", "light grey", "dark grey", "beige", "light blue", "light green", "dark blue"
]
Part = Literal["object", "background", "word"]

COLOURS: dict[Colour, tuple[int, int, int]] = {
    "red": (220, 30, 40),
    "orange": (250, 130, 20),
    "yellow": (245, 205, 20),
    "green": (30, 150, 60),
    "blue": (30, 90, 225),
    "purple": (135, 50, 180),
    "pink": (245, 105, 180),
    "brown": (125, 75, 35),
}
BACKGROUNDS: dict[Background, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "black": (10, 10, 12),
    "light grey": (205, 205, 208),
    "dark grey": (75, 77, 82),
    "beige": (238, 226, 198),
    "light blue": (180, 216, 244),
    "light green": (192, 232, 182),
    "dark blue": (18, 28, 78),
}
VALUES: dict[str, tuple[str, ...]] = {
    "shape": get_args(Shape),
    "colour": get_args(Colour),
    "texture": get_args(Texture),
    "size": get_args(Size),
    "place": get_args(Place),
    "background": get_args(Background),
}
"""The attributes of every scene, and the values of each."""
WORDS = ("CAT", "DOG", "STOP", "SALE", "RED", "BLUE", "STAR", "RING")
"""Words that are painted; some of them contradict the picture."""

_OVERSAMPLING = 4
"""Shapes are drawn larger by this factor and then reduced, for smooth edges."""
_WORD_SHARE = 0.25
"""Share of scenes with a word."""
_SIZES: dict[Size, float] = {"small": 0.2, "large": 0.36}
"""Side of the object as a share of the picture's side."""
_JITTER = 0.03
"""The largest random shift of an object, as a share of the picture's side."""

_SHOWN_BY: dict[str, Part] = {
    **dict.fromkeys(("shape", "colour", "texture", "size", "place"), "object"),
    "background": "background",
    "word": "word",
}
"""The part that shows each attribute."""

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Attributes:
    """The attributes of a scene."""

    shape: Shape
    colour: Colour
    texture: Texture
    size: Size
    place: Place
    background: Background
    word: str | None = None
    """A word painted over the picture, in capitals."""

    @property
    def textured(self) -> str:
        """The shape with its texture, as in "striped star"; the word "plain" is left out."""
        return self.shape if self.texture == "plain" else f"{self.texture} {self.shape}"

    @property
    def caption(self) -> str:
        """All attributes in words: "a small red striped star at the top left of a white ..."."""
        thing = f"a {self.size} {self.colour} {self.textured}"
        where = f"in the {self.place}" if self.place == "centre" else f"at the {self.place}"
        word = f" with the word {self.word}" if self.word else ""
        return f"{thing} {where} of a {self.background} background{word}"

    @property
    def numbers(self) -> tuple[int, ...]:
        """The number of each attribute's value, in the order of `VALUES`."""
        return tuple(values.index(getattr(self, name)) for name, values in VALUES.items())


_CAPTION = re.compile(
    r"a (?P<size>{size}) (?P<colour>{colour}) (?:(?P<texture>{texture}) )?(?P<shape>{shape}) "
    r"(?:in|at) the (?P<place>{place}) of a (?P<background>{background}) background"
    r"(?: with the word (?P<word>[A-Z]+))?".format(
        **{name: "|".join(values) for name, values in VALUES.items()}
    )
)


def read_caption(text: str) -> Attributes | None:
    """Parse a caption: the exact inverse of `Attributes.caption`; None for any other text."""
    match = _CAPTION.fullmatch(text)
    if match is None:
        return None
    parts: dict[str, Any] = match.groupdict()
    attributes = Attributes(**(parts | {"texture": parts["texture"] or "plain"}))
    return attributes if attributes.caption == text else None


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture with its attributes and the masks of its parts."""

    image: Image.Image
    """RGB, square."""
    attributes: Attributes
    parts: dict[Part, Mask]
    """Masks (side, side); every pixel belongs to exactly one part. The part "word" is absent when
    no word is painted."""

    @property
    def caption(self) -> str:
        """The attributes in words."""
        return self.attributes.caption

    def evidence(self, attribute: str) -> Mask:
        """The pixels (side, side) that show an attribute, to which a good explanation points.

        Raises `InvalidInputError` for an attribute that this scene does not have.
        """
        part = _SHOWN_BY.get(attribute)
        if part not in self.parts:
            raise InvalidInputError(
                f"this scene has no {attribute!r}; attributes are {', '.join(_SHOWN_BY)} (a word "
                "only where one is painted)",
                field="attribute",
            )
        return self.parts[part]


def _regular(points: int, *, inner: float = 1.0, start: float = -90.0) -> list[tuple[float, float]]:
    """Corners in the unit square; every other corner lies at the share ``inner`` of the radius."""
    corners = []
    for i in range(points):
        angle = math.radians(start + 360 * i / points)
        radius = 0.5 * (inner if i % 2 else 1)
        corners.append((0.5 + radius * math.cos(angle), 0.5 + radius * math.sin(angle)))
    return corners


_POLYGONS: dict[str, list[tuple[float, float]]] = {
    "square": [(0.06, 0.06), (0.94, 0.06), (0.94, 0.94), (0.06, 0.94)],
    "triangle": [(0.5, 0.03), (1.0, 0.93), (0.0, 0.93)],
    "star": _regular(10, inner=0.42),
    "cross": [
        *((0.34, 0.0), (0.66, 0.0), (0.66, 0.34), (1.0, 0.34), (1.0, 0.66), (0.66, 0.66)),
        *((0.66, 1.0), (0.34, 1.0), (0.34, 0.66), (0.0, 0.66), (0.0, 0.34), (0.34, 0.34)),
    ],
    "diamond": [(0.5, 0.0), (0.84, 0.5), (0.5, 1.0), (0.16, 0.5)],
}


def _shape(shape: Shape, side: int) -> Image.Image:
    """The shape in white on black, side x side, mode L."""
    image = Image.new("L", (side, side))
    draw = ImageDraw.Draw(image)
    if shape in _POLYGONS:
        # Pillow fills the outline's pixels too, whose centres lie half a pixel further inside.
        draw.polygon([(x * side - 0.5, y * side - 0.5) for x, y in _POLYGONS[shape]], fill=255)
    elif shape == "heart":
        draw.ellipse((0.02 * side, 0.06 * side, 0.53 * side, 0.56 * side), fill=255)
        draw.ellipse((0.47 * side, 0.06 * side, 0.98 * side, 0.56 * side), fill=255)
        corners = [(0.05, 0.42), (0.5, 0.3), (0.95, 0.42), (0.5, 0.97)]
        draw.polygon([(x * side, y * side) for x, y in corners], fill=255)
    else:
        draw.ellipse((0, 0, side - 1, side - 1), fill=255)
        if shape == "ring":
            draw.ellipse((0.27 * side, 0.27 * side, 0.73 * side, 0.73 * side), fill=0)
    return image


_PATTERNS: dict[Texture, Callable[[NDArray[Any], NDArray[Any]], Mask]] = {
    "plain": lambda x, y: np.zeros(x.shape, np.bool_),
    "striped": lambda x, y: ((x + y) * 4) % 1 < 0.5,
    "dotted": lambda x, y: ((x * 5) % 1 - 0.5) ** 2 + ((y * 5) % 1 - 0.5) ** 2 < 0.09,
    "checkered": lambda x, y: (np.floor(x * 5) + np.floor(y * 5)) % 2 == 0,
}


def _object(attributes: Attributes, side: int) -> Image.Image:
    """The textured object as RGBA, side x side; the marks of a texture are a darker shade."""
    large = side * _OVERSAMPLING
    y, x = (np.mgrid[:large, :large] + 0.5) / large
    colour = np.array(COLOURS[attributes.colour], dtype=np.uint8)
    marked = _PATTERNS[attributes.texture](x, y)[..., None]
    pixels = np.where(marked, (colour * 0.45).astype(np.uint8), colour)
    image = Image.fromarray(pixels).resize((side, side), Image.Resampling.BOX)
    outline = _shape(attributes.shape, large).resize((side, side), Image.Resampling.BOX)
    image.putalpha(outline)
    return image


def _centre(place: Place) -> tuple[float, float]:
    """The centre (x, y) of an object, as shares of width and height."""
    x = 0.22 if "left" in place else 0.78 if "right" in place else 0.5
    y = 0.22 if "top" in place else 0.78 if "bottom" in place else 0.5
    return x, y


def _word(attributes: Attributes, side: int) -> tuple[Image.Image, Image.Image]:
    """(letters, letters with outline), mode L, in the half of the picture without the object."""
    letters, outlined = Image.new("L", (side, side)), Image.new("L", (side, side))
    font = ImageFont.load_default(side * 0.17)
    where = (side / 2, side * (0.14 if "bottom" in attributes.place else 0.86))
    stroke = max(1, side // 100)
    for image, width in ((letters, 0), (outlined, stroke)):
        ImageDraw.Draw(image).text(
            where, attributes.word or "", 255, font, anchor="mm", stroke_width=width
        )
    return letters, outlined


def draw(attributes: Attributes, *, side: int = 224, seed: int = 0) -> Scene:
    """Draw a scene of ``side`` x ``side`` pixels.

    ``seed`` determines a small shift of the object. Two scenes of one seed with one different
    attribute differ in nothing else, so they are a counterfactual pair. A mask holds the pixels of
    which its part covers at least half.
    """
    if side < 32:
        raise InvalidInputError(
            f"a side of {side} pixels is too small; give 32 or more", field="side"
        )
    shift = np.random.default_rng(seed).uniform(-_JITTER, _JITTER, 2)
    image = Image.new("RGB", (side, side), BACKGROUNDS[attributes.background])
    thing = _object(attributes, round(_SIZES[attributes.size] * side))
    left, top = (
        round((centre + move) * side - thing.width / 2)
        for centre, move in zip(_centre(attributes.place), shift, strict=True)
    )
    image.paste(thing, (left, top), thing)
    covered = Image.new("L", (side, side))
    covered.paste(thing.getchannel("A"), (left, top))
    masks: dict[Part, Mask] = {"object": np.asarray(covered) >= 128}
    if attributes.word:
        letters, outlined = _word(attributes, side)
        dark = sum(BACKGROUNDS[attributes.background]) < 3 * 128
        image.paste("black" if dark else "white", mask=outlined)
        image.paste("white" if dark else "black", mask=letters)
        masks["word"] = np.asarray(ImageChops.lighter(letters, outlined)) >= 128
        masks["object"] = masks["object"] & ~masks["word"]
    masks["background"] = ~np.logical_or.reduce(list(masks.values()))
    return Scene(image, attributes, masks)


def random_attributes(random: np.random.Generator) -> Attributes:
    """Draw every attribute uniformly and independently, and a word with probability 1/4."""

    def one(values: tuple[str, ...]) -> Any:
        return values[random.integers(len(values))]

    chosen = Attributes(**{name: one(values) for name, values in VALUES.items()})
    word = one(WORDS)
    return replace(chosen, word=word) if random.random() < _WORD_SHARE else chosen


def scenes(count: int, seed: int, *, side: int = 224) -> Iterator[Scene]:
    """``count`` random scenes; scene i does not depend on ``count``."""
    for i in range(count):
        random = np.random.default_rng([seed, i])
        yield draw(random_attributes(random), side=side, seed=int(random.integers(2**32)))

"""Labels for composed scenes: terms, conjunctions of at most three terms, and their English.

A term is a set of values of one attribute: "red", "a star", "at the top left", or a union with a
name in English: "patterned" is striped, dotted or checkered, and "on the left side" is three
places. A label joins terms of different attributes. A label is true of a scene when all of its
terms are true.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import combinations
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int64

from vision_sae.pictures.scenes import VALUES, Attributes

MOST = 3
"""The most terms of a label."""
_UNION_COST = 1.0
"""The additional cost of a union of values, in nats."""
_OR_COST = 2.0
"""The further cost of a union whose name contains "or", in nats."""

_SIDES: dict[str, tuple[str, ...]] = {
    "on the left side": ("top left", "left", "bottom left"),
    "on the right side": ("top right", "right", "bottom right"),
    "in the upper part": ("top left", "top", "top right"),
    "in the lower part": ("bottom left", "bottom", "bottom right"),
    "in the middle row": ("left", "centre", "right"),
    "in the middle column": ("top", "centre", "bottom"),
    "in a corner": ("top left", "top right", "bottom left", "bottom right"),
}
_GROUNDS: dict[str, tuple[str, ...]] = {
    "dark background": ("black", "dark grey", "dark blue"),
    "light background": ("white", "light grey", "beige", "light blue", "light green"),
    "grey background": ("light grey", "dark grey"),
    "blue background": ("light blue", "dark blue"),
    "black or dark blue background": ("black", "dark blue"),
    "white or light grey background": ("white", "light grey"),
    "white or beige background": ("white", "beige"),
    "light blue or light green background": ("light blue", "light green"),
    "light green or beige background": ("light green", "beige"),
}
_COLOURS: dict[str, tuple[str, ...]] = {
    "warm": ("red", "orange", "yellow"),
    "reddish": ("red", "pink"),
    "dark": ("purple", "brown"),
    **{
        f"{one} or {other}": (one, other)
        for one, other in (
            ("red", "orange"),
            ("orange", "yellow"),
            ("yellow", "green"),
            ("green", "blue"),
            ("blue", "purple"),
            ("purple", "pink"),
            ("orange", "brown"),
            ("red", "brown"),
        )
    },
}
_SHAPES: dict[str, tuple[str, ...]] = {
    "round thing": ("circle", "ring"),
    **{
        f"{one} or {other}": (one, other)
        for one, other in combinations(VALUES["shape"], 2)
        if (one, other) != ("circle", "ring")
    },
}
_TEXTURES: dict[str, tuple[str, ...]] = {"patterned": ("striped", "dotted", "checkered")}


class Term(NamedTuple):
    """Values of one attribute, and their name in English."""

    attribute: str
    values: tuple[str, ...]
    words: str

    @property
    def cost(self) -> float:
        """The description length in nats: one of all terms, and more for a union."""
        either = " or " in self.words
        union = len(self.values) > 1
        return math.log(len(terms())) + _UNION_COST * union + _OR_COST * either

    def to_json(self) -> dict[str, Any]:
        """The term in the details of a description."""
        return {"attribute": self.attribute, "values": list(self.values)}


ScenePart = Literal["", "object", "background"]
"""The part of a scene that a feature fires on; empty for both parts, or when it is unclear."""
SceneLabel = tuple[Term, ...]
"""Terms of different attributes, in the order of `VALUES`."""


@lru_cache(maxsize=1)
def terms() -> tuple[Term, ...]:
    """Every term."""
    singles = [
        Term(name, (value,), _single(name, value))
        for name, values in VALUES.items()
        for value in values
    ]
    unions: Mapping[str, Mapping[str, tuple[str, ...]]] = {
        "shape": _SHAPES,
        "colour": _COLOURS,
        "texture": _TEXTURES,
        "place": _SIDES,
        "background": _GROUNDS,
    }
    return (
        *singles,
        *(Term(name, v, words) for name, of in unions.items() for words, v in of.items()),
    )


def _single(attribute: str, value: str) -> str:
    if attribute == "place":
        return f"in the {value}" if value == "centre" else f"at the {value}"
    return f"{value} background" if attribute == "background" else value


def read_label(rows: Iterable[Mapping[str, Any]]) -> SceneLabel:
    """The label from the terms in a description's details; see `Term.to_json`."""
    known = {(term.attribute, term.values): term for term in terms()}
    return tuple(known[row["attribute"], tuple(row["values"])] for row in rows)


def cost(label: SceneLabel) -> float:
    """The description length of a label in nats."""
    return sum(term.cost for term in label)


def truth(label: Iterable[Term], shown: Int64[np.ndarray, "N A"]) -> Bool[np.ndarray, N]:
    """The scenes that a label is true of.

    ``shown`` holds the number of each scene's value for each attribute; see `numbers`.
    """
    true = np.ones(len(shown), np.bool_)
    for column, allowed in allowed_values(label).items():
        true &= np.isin(shown[:, column], allowed)
    return true


def allowed_values(label: Iterable[Term]) -> dict[int, list[int]]:
    """{number of an attribute: numbers of the values that a label allows}"""
    names = list(VALUES)
    return {
        names.index(term.attribute): [VALUES[term.attribute].index(v) for v in term.values]
        for term in label
    }


def numbers(scenes: Sequence[Attributes]) -> Int64[np.ndarray, "N A"]:
    """The number of each scene's value for each attribute, in the order of `VALUES`."""
    values = np.array([scene.numbers for scene in scenes], dtype=np.int64)
    return values.reshape(len(scenes), len(VALUES))


def english(label: SceneLabel, *, part: ScenePart = "") -> str:
    """A label in English; ``part`` is the part of such a scene that the feature fires on."""
    words = {term.attribute: term.words for term in label}
    ground, where = words.pop("background", ""), words.pop("place", "")
    behind = part == "background" and bool(words or where)
    alone = not behind and not (ground and part == "object")
    if alone and not (words and where) and not (ground and (words or where)):
        if not words:
            return ground or where
        if len(words) == 1 and "shape" not in words:
            return next(iter(words.values()))
    looks = [words[name] for name in ("size", "colour", "texture") if name in words]
    thing = " ".join((*looks, words.get("shape", "thing")))
    phrase = f"{'an' if thing[0] in 'aeiou' else 'a'} {thing}{where and ' '}{where}"
    if behind:
        return f"{ground} around {phrase}" if ground else f"background of {phrase}"
    return f"{phrase} on a {ground}" if ground else phrase

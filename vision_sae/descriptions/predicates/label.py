"""Labels composed of predicates, and their English.

A label is a conjunction of a kind of thing (or a union of kinds) and looks of the patches where a
unit fires. The label reads as English: "underside of an animal", "red background", "edge of a white
thing, in the upper part".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from vision_sae.descriptions.predicates.looks import LOOKS, ROW, Family, Look
from vision_sae.descriptions.predicates.wordnet import nouns

_PLACES = {
    "top": "in the upper part",
    "bottom": "in the lower part",
    "left": "at the left",
    "right": "at the right",
    "middle": "in the middle",
    "corner": "in a corner",
    "border": "at the border",
}
_LINES = {
    "horizontal": "horizontal lines",
    "vertical": "vertical lines",
    "diagonal": "diagonal lines",
}
_SIZES = {"large": "large", "small": "small"}


@dataclass(frozen=True)
class Label:
    """A union of kinds and a conjunction of looks: one kind is in the picture, all looks hold."""

    kinds: tuple[int, ...] = ()
    """Numbers of `vision_sae.descriptions.predicates.wordnet.Nouns.kinds`."""
    looks: tuple[Look, ...] = ()
    """At most one look of each family."""
    names: tuple[str, ...] = field(default=(), compare=False)
    """The names of the kinds; when absent, the usual names in the table of nouns."""

    @property
    def length(self) -> int:
        """The number of predicates."""
        return len(self.kinds) + len(self.looks)

    @property
    def rows(self) -> list[int]:
        """The positions of the looks in `LOOKS`."""
        return [ROW[look] for look in self.looks]

    def with_look(self, look: Look) -> Label:
        """The label with one more look."""
        return Label(self.kinds, (*self.looks, look), self.names)

    @property
    def text(self) -> str:
        """The label in English."""
        return _english(self._names, self.looks)

    @property
    def _names(self) -> tuple[str, ...]:
        return self.names or tuple(nouns().kinds[kind].name for kind in self.kinds)

    def to_json(self) -> dict[str, Any]:
        """The label as JSON for `label_from_json`."""
        looks = [list(look) for look in self.looks]
        return {"kinds": list(self.kinds), "names": list(self._names), "looks": looks}


def label_from_json(row: dict[str, Any]) -> Label:
    """The inverse of `Label.to_json`."""
    looks = tuple(Look(*look) for look in row["looks"])
    return Label(tuple(row["kinds"]), looks, tuple(row["names"]))


_NOT_COUNTED = frozenset(
    ("clothing", "furniture", "food", "footwear", "wood", "water", "hair", "grass", "jewelry")
)


def with_article(words: str) -> str:
    """ "red apple" -> "a red apple"; plurals and mass nouns stay unchanged."""
    last = words.split()[-1]
    if last in _NOT_COUNTED or (last.endswith("s") and not last.endswith(("ss", "us", "is"))):
        return words
    vowel = words[0] in "aeio" or words.startswith(("un", "um"))
    return f"{'an' if vowel and not words.startswith('uni') else 'a'} {words}"


def _english(things: Sequence[str], looks: Iterable[Look]) -> str:
    by_family: dict[Family, str] = {look.family: look.word for look in looks}
    ground = by_family.get("ground", "")
    adjectives = [
        word
        for word in (
            by_family.get("size"),
            by_family.get("texture"),
            by_family.get("light"),
            by_family.get("colour"),
        )
        if word
    ]
    part = by_family.get("part", "")
    place = _PLACES[by_family["place"]] if "place" in by_family else ""
    lines = _LINES[by_family["lines"]] if "lines" in by_family else ""
    thing = " or ".join(_listed(things))
    look = " ".join(adjectives)
    if ground == "background":
        main = f"{look} background".strip()
        main = f"{lines} in the {main}" if lines else main
        main = f"{main} of {with_article(thing)}" if thing else main
    elif part or ground == "edge":
        # The looks belong to the part, not to the whole.
        whole = with_article(thing) if thing else "a thing"
        piece = f"{look} {part or 'edge'}".strip()
        main = f"{piece} of {whole}"
        main = f"{main} with {lines}" if lines else main
    elif thing:
        main = f"{look} part of {with_article(thing)}" if look else thing
        main = f"{lines} of {with_article(thing)}" if lines and not look else main
    elif lines:
        main = f"{look} {lines}".strip()
    elif look:
        main = f"something {look}" if ground != "object" else f"{look} thing"
    else:
        main = "thing" if ground == "object" else ""
    if not main:
        return place.removeprefix("in the ").removeprefix("at the ").removeprefix("in a ")
    return f"{main}, {place}" if place else main


def _listed(things: Sequence[str]) -> list[str]:
    *first, last = list(things) or [""]
    return [", ".join(first), last] if first else [last]


_ADJECTIVES = {look.word: look for look in LOOKS if look.family in ("colour", "light", "texture")}


def read_label(text: str) -> Label:
    """The part of a free text that can be tested: its things, and its words for looks."""
    from vision_sae.descriptions.predicates.captions import things

    words = {word.strip(".,;:!?").lower() for word in text.split()}
    looks = tuple(look for word, look in _ADJECTIVES.items() if word in words)
    if "background" in words:
        looks = (Look("ground", "background"), *looks)
    named = [noun for noun in things(text) if noun not in _ADJECTIVES]
    kinds = tuple(dict.fromkeys(kind for noun in named for kind in nouns().named(noun)))
    return Label(kinds, looks)

"""Nouns and their hypernyms: WordNet's graph of nouns, as a table in the package.

`Nouns` gives the kinds of things that a word names, and the hypernyms of each kind. The table
``nouns.tsv.gz`` (written by `tools.demo.make_nouns`; WordNet 3.0, see NOTICE) has three parts,
separated by empty lines: kinds (usual name, ten times the Zipf frequency of that name, numbers of
the direct hypernyms, which come earlier), nouns (name, numbers of the kinds that the noun names,
most frequent sense first), irregular plurals (plural, singular).

Source: Miller, WordNet: A Lexical Database for English, Communications of the ACM 38 (11), 1995.
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

TABLE = Path(__file__).parent / "nouns.tsv.gz"
_PLURALS = (
    ("ses", "s"),
    ("ves", "f"),
    ("xes", "x"),
    ("zes", "z"),
    ("ches", "ch"),
    ("shes", "sh"),
    ("men", "man"),
    ("ies", "y"),
    ("s", ""),
)
"""(ending, replacement) pairs of WordNet's morphology for plural nouns (morphy(7WN))."""
_LONGEST = 3
"""The most words of a noun in the table."""


class NounKind(NamedTuple):
    """A kind of things."""

    name: str
    zipf: float
    """Zipf frequency of the name: 3 is once in a million words, 6 is once in a thousand words."""
    kinds: tuple[int, ...]
    """Numbers of the direct hypernyms."""


class Nouns:
    """The table in memory."""

    def __init__(
        self, kinds: Sequence[NounKind], nouns: dict[str, tuple[int, ...]], plurals: dict[str, str]
    ) -> None:
        self.kinds = kinds
        self._nouns = nouns
        self._plurals = plurals

    def lemma(self, word: str) -> str | None:
        """The singular of a noun, in lower case; None for a word that is no noun."""
        word = word.lower()
        if word in self._plurals:
            return self._plurals[word]
        if word in self._nouns:
            return word
        for ending, replacement in _PLURALS:
            single = word.removesuffix(ending) + replacement
            if word.endswith(ending) and len(single) > 2 and single in self._nouns:
                return single
        return None

    def named(self, word: str) -> tuple[int, ...]:
        """The kinds that a singular or plural noun names; empty for a word that is no noun."""
        lemma = self.lemma(word)
        return () if lemma is None else self._nouns[lemma]

    @cache  # noqa: B019 - one instance lives as long as the process
    def above(self, kind: int) -> frozenset[int]:
        """A kind and all of its hypernyms."""
        return frozenset({kind}).union(*(self.above(k) for k in self.kinds[kind].kinds))

    def means(self, word: str) -> frozenset[int]:
        """All kinds that things of this name belong to."""
        return frozenset().union(*(self.above(kind) for kind in self.named(word)))

    def heads(self, words: Sequence[str]) -> list[str]:
        """The nouns that name the things in a run of words.

        The longest noun at the end of the run is the head ("delivery truck", "umbrella" of "beach
        umbrella"). Words after the last noun are ignored ("man" of "man walking"). A body part
        names its owner too: "cat face" names a cat.
        """
        for end in range(len(words), 0, -1):
            for begin in range(max(0, end - _LONGEST), end):
                noun = " ".join(words[begin:end])
                if self.named(noun):
                    return [noun, *self._owner(noun, words[:begin])]
        return []

    def _owner(self, noun: str, before: Sequence[str]) -> list[str]:
        if not before or not any(self.kinds[k].name == "body part" for k in self.means(noun)):
            return []
        owner = self.heads(before[-1:])
        alive = {"animal", "person"}
        return [o for o in owner if any(self.kinds[k].name in alive for k in self.means(o))]


@cache
def nouns() -> Nouns:
    """The table of the package, read once."""
    text = gzip.decompress(TABLE.read_bytes()).decode()
    kinds, names, plurals = (part.split("\n") for part in text.rstrip("\n").split("\n\n"))

    def numbers(field: str) -> tuple[int, ...]:
        return tuple(map(int, field.split(","))) if field else ()

    def kind(line: str) -> NounKind:
        name, zipf, above = line.split("\t")
        return NounKind(name, int(zipf) / 10, numbers(above))

    return Nouns(
        [kind(line) for line in kinds],
        {name: numbers(senses) for name, senses in (line.split("\t") for line in names)},
        dict(line.split("\t") for line in plurals),  # type: ignore[arg-type]
    )

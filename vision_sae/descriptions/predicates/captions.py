"""What people said is in each picture: kinds of things, from captions and tags.

A caption's nouns are the heads of its runs of content words (`Nouns.heads`); a thing belongs to
every kind above its own, so a picture captioned "a delivery truck" shows a truck, a vehicle and a
delivery truck. Words for the picture itself ("background", "photograph") name nothing in it, nor do
colours that stand before a noun.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, lru_cache

import numpy as np
from scipy.sparse import csr_array

from vision_sae.activations.store import ImageRecord
from vision_sae.descriptions.describers.function_words import FUNCTION_WORDS
from vision_sae.descriptions.predicates.wordnet import nouns

_CLAUSE = re.compile(r"[^,.;:!?()\"\n]+")
_WORD = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*|\S+")
OF_THE_PICTURE = frozenset(
    [
        "background",
        "backgrounds",
        "backdrop",
        "picture",
        "pictures",
        "photograph",
        "photo",
        "image",
        "illustration",
        "drawing",
        "pattern",
        "ground",
        "foreground",
        "left",
        "right",
        "top",
        "bottom",
        "centre",
        "center",
        "middle",
        "side",
        "corner",
        "kind",
        "sort",
        "number",
        "symbol",
        "sign",
    ]
)
"""Nouns that say where in the picture a thing is, or that there is a picture."""
_ENDS_A_RUN = frozenset(
    ["walking", "running", "facing", "kneeling", "fading", "holding", "standing", "sitting"]
)
"""Words in captions that part a thing from what it does."""


def _runs(text: str) -> Iterator[list[str]]:
    """Content words that follow each other, in lower case."""
    for clause in _CLAUSE.findall(text.lower()):
        run: list[str] = []
        for word in [*_WORD.findall(clause), ""]:
            if word and word[0].isalpha() and word not in FUNCTION_WORDS | _ENDS_A_RUN:
                run.append(word)
            elif run:
                yield run
                run = []


def things(text: str) -> list[str]:
    """The nouns by which a text names what there is to see, each once."""
    found = [head for run in _runs(text) for head in nouns().heads(run)]
    return [noun for noun in dict.fromkeys(found) if noun not in OF_THE_PICTURE]


@lru_cache(maxsize=65536)
def kinds_named(text: str) -> frozenset[int]:
    """All kinds that the things of a text belong to."""
    return frozenset().union(*(nouns().means(noun) for noun in things(text)))


def said(image: ImageRecord) -> tuple[str, ...]:
    """All that people said of a picture; nothing where it has neither caption nor tags."""
    return tuple(text for text in (image.caption, *image.tags) if text)


class CaptionKinds:
    """Which picture shows which kinds of things, by what was said of it."""

    def __init__(self, images: Sequence[ImageRecord]) -> None:
        self._texts = [text for image in images for text in said(image)]
        rows = [sorted(frozenset().union(*map(kinds_named, said(image)))) for image in images]
        self.said = np.array([bool(said(image)) for image in images], dtype=np.bool_)
        """The pictures (N) of which something was said: of others nothing is known."""
        counts = np.array([len(row) for row in rows], dtype=np.int64)
        indptr = np.concatenate([[0], np.cumsum(counts)])
        indices = np.fromiter((kind for row in rows for kind in row), np.int64, int(indptr[-1]))
        shape = (len(rows), len(nouns().kinds))
        self.shows = csr_array((np.ones(len(indices), np.bool_), indices, indptr), shape)
        """Which picture shows which kind (N, K), K kinds of `vision_sae...wordnet.Nouns.kinds`."""

    def name(self, kind: int) -> str:
        """What captions call a kind most often; where none names it by itself, its usual name."""
        return self._names.get(kind, nouns().kinds[kind].name)

    @cached_property
    def _names(self) -> dict[int, str]:
        called: dict[int, Counter[str]] = defaultdict(Counter)
        for text in self._texts:
            for noun in things(text):
                lemma = nouns().lemma(noun)
                for kind in nouns().named(noun):
                    called[kind][lemma or noun] += 1
        return {kind: names.most_common(1)[0][0] for kind, names in called.items()}

    def of(self, kinds: Iterable[int]) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """The pictures (N) that show one of ``kinds``."""
        wanted = np.zeros(self.shows.shape[1], dtype=np.int32)
        wanted[list(kinds)] = 1
        return np.asarray(self.shows.astype(np.int32) @ wanted > 0)

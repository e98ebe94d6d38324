"""The kinds of things in each picture, from captions and tags.

The nouns of a caption are the heads of its runs of content words (`Nouns.heads`). A thing belongs
to its kind and to all hypernyms of the kind, so a picture captioned "a delivery truck" shows a
delivery truck, a truck and a vehicle. Words for the picture itself ("background", "photograph")
name no thing in the picture. A colour before a noun names no thing either.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, lru_cache

import numpy as np
from jaxtyping import Bool
from scipy.sparse import csr_array

from vision_sae.activations.store import ImageRecord
from vision_sae.descriptions.predicates.wordnet import nouns
from vision_sae.descriptions.words.function_words import FUNCTION_WORDS

_CLAUSE = re.compile(r"[^,.;:!?()\"\n]+")
_WORD = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*|\S+")
PICTURE_WORDS = frozenset(
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
"""Nouns for a place in the picture, or for the picture itself."""
_ENDS_A_RUN = frozenset(
    ["walking", "running", "facing", "kneeling", "fading", "holding", "standing", "sitting"]
)
"""Verb forms that follow a thing in captions and end its run of words."""


def _runs(text: str) -> Iterator[list[str]]:
    """Runs of adjacent content words, in lower case."""
    for clause in _CLAUSE.findall(text.lower()):
        run: list[str] = []
        for word in [*_WORD.findall(clause), ""]:
            if word and word[0].isalpha() and word not in FUNCTION_WORDS | _ENDS_A_RUN:
                run.append(word)
            elif run:
                yield run
                run = []


def things(text: str) -> list[str]:
    """The nouns of a text that name things in the picture, each once."""
    heads = [head for run in _runs(text) for head in nouns().heads(run)]
    return [noun for noun in dict.fromkeys(heads) if noun not in PICTURE_WORDS]


@lru_cache(maxsize=65536)
def kinds_named(text: str) -> frozenset[int]:
    """All kinds that the things in a text belong to."""
    return frozenset().union(*(nouns().means(noun) for noun in things(text)))


def texts_of(image: ImageRecord) -> tuple[str, ...]:
    """The caption and the tags of a picture; empty when there are none."""
    return tuple(text for text in (image.caption, *image.tags) if text)


class CaptionKinds:
    """The kinds of things in each picture, from captions and tags."""

    def __init__(self, images: Sequence[ImageRecord]) -> None:
        self._texts = [text for image in images for text in texts_of(image)]
        rows = [sorted(frozenset().union(*map(kinds_named, texts_of(image)))) for image in images]
        self.captioned: Bool[np.ndarray, N] = np.array(
            [bool(texts_of(image)) for image in images], dtype=np.bool_
        )
        """The pictures with a caption or tags: the contents of other pictures are unknown."""
        counts = np.array([len(row) for row in rows], dtype=np.int64)
        indptr = np.concatenate([[0], np.cumsum(counts)])
        indices = np.fromiter((kind for row in rows for kind in row), np.int64, int(indptr[-1]))
        shape = (len(rows), len(nouns().kinds))
        self.shows = csr_array((np.ones(len(indices), np.bool_), indices, indptr), shape)
        """Whether a picture shows a kind (N, kinds), by the numbers of `Nouns.kinds`."""

    def name(self, kind: int) -> str:
        """The most frequent name of a kind in captions; its usual name when captions have none."""
        return self._names.get(kind, nouns().kinds[kind].name)

    @cached_property
    def _names(self) -> dict[int, str]:
        counts: dict[int, Counter[str]] = defaultdict(Counter)
        for text in self._texts:
            for noun in things(text):
                lemma = nouns().lemma(noun)
                for kind in nouns().named(noun):
                    counts[kind][lemma or noun] += 1
        return {kind: names.most_common(1)[0][0] for kind, names in counts.items()}

    def of(self, kinds: Iterable[int]) -> Bool[np.ndarray, N]:
        """The pictures that show one of ``kinds``."""
        wanted = np.zeros(self.shows.shape[1], dtype=np.int32)
        wanted[list(kinds)] = 1
        return np.asarray(self.shows.astype(np.int32) @ wanted > 0)

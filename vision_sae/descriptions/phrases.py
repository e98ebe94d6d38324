"""Labels of several words: the best words of a unit, given attributes, parts and company.

A beam search over texts, each embedded as a whole: the best things ("apple") with every attribute
and as the whole of every part ("red apple", "stem of an apple"); then the best of these with a
second attribute ("shiny red apple"), and the best things in pairs ("apple with leaf"). A phrase has
the objective of a word, against its own prior, as if it and its likes were added to the
vocabulary. Its likes have to be: "white apple" is likelier for a red apple than for anything else,
and would pass for a label of red apples if "red apple" did not claim them.

Texts are embedded in batches that are always the same: all that is made of one thing, or all that
is tried last for one unit. A batch's composition moves the last bits of its vectors, and labels
must not depend on which units were asked for before.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations
from typing import NamedTuple

from torch import Tensor

from vision_sae.descriptions.attributes import (
    ATTRIBUTES,
    COLOURS,
    MATERIALS,
    PARTS,
    SHAPES,
    SIZES,
    TEXTURES,
)
from vision_sae.descriptions.prior import Prior, posterior_beside
from vision_sae.descriptions.wpmi import soft_wpmi
from vision_sae.models.protocol import ContrastiveModel

_KEPT = 1024
"""Things whose phrases are kept in memory, about 100 KB each."""
_SECOND = 4
"""Attributes that are tried two by two."""
_SAME = 0.6
"""Things whose directions have at least this cosine are too much alike to be "A with B"."""
_ORDER = {word: i for i, word in enumerate((*SIZES, *SHAPES, *TEXTURES, *COLOURS, *MATERIALS))}


class Region(NamedTuple):
    """What phrases are compared with: a unit's centred regions, strongest first."""

    vectors: Tensor
    """(n, E), of unit length."""
    log_partition: Tensor
    """Log of the denominator of each one's softmax over the vocabulary (n, 1)."""


class _Texts(NamedTuple):
    """Phrases that are embedded together and compete with each other."""

    texts: tuple[str, ...]
    directions: Tensor
    """Centred and of unit length (T, E), float16."""
    mean_posterior: Tensor
    """Over the prior's regions (T)."""
    log_partition: Tensor
    """Of the prior's regions, with these phrases (R, 1)."""


class _Scored(NamedTuple):
    pmi: list[float]
    log_partition: Tensor
    """Of the unit's regions, with the phrases (n, 1)."""


def _of_a(part: str, thing: str) -> str:
    return f"{part} of {'an' if thing[0] in 'aeiou' else 'a'} {thing}"


def _with_attributes(attributes: Sequence[str], thing: str) -> str:
    """As in "small striped red ball"."""
    return " ".join((*sorted(attributes, key=_ORDER.__getitem__), thing))


def _in_pairs(things: Sequence[str], directions: Tensor) -> list[str]:
    """"A with B" of things that are not much the same."""
    return [
        f"{things[i]} with {things[j]}"
        for i, j in combinations(range(len(things)), 2)
        if float(directions[i] @ directions[j]) < _SAME
        and not set(things[i].split()) & set(things[j].split())
    ]


class PhraseSearch:
    """The beam search of one model and prior."""

    def __init__(self, model: ContrastiveModel, prior: Prior) -> None:
        self._model = model
        self._prior = prior
        self._around = lru_cache(maxsize=_KEPT)(self._embed_around)

    def search(
        self, region: Region, things: Sequence[str], directions: Tensor
    ) -> list[tuple[str, float]]:
        """Phrases and their pmi in nats, in the order in which they are tried.

        ``things`` are the unit's best words, best first, and ``directions`` (T, E) their centred
        embeddings. The number of phrases returned is what was tried: whoever takes the best of
        them must allow for it.
        """
        found: list[tuple[str, float]] = []
        tried = [(thing, self._around(thing)) for thing in things]
        scored = [self._score(region, around) for _, around in tried]
        for (_, around), scores in zip(tried, scored, strict=True):
            found += zip(around.texts, scores.pmi, strict=True)
        best = max(range(len(tried)), key=lambda i: max(scored[i].pmi))
        thing, around = tried[best]
        last = [
            *self._second_attributes(thing, scored[best].pmi),
            *_in_pairs(things, directions),
        ]
        texts = self._embed(last, around.log_partition)
        scores = self._score(region._replace(log_partition=scored[best].log_partition), texts)
        return [*found, *zip(last, scores.pmi, strict=True)]

    def _embed_around(self, thing: str) -> _Texts:
        """A thing with each attribute, then as the whole of each part."""
        given = set(thing.split())
        attributes = [_with_attributes([a], thing) for a in ATTRIBUTES if a not in given]
        parts = [_of_a(part, thing) for part in PARTS if part not in given]
        return self._embed([*attributes, *parts], self._prior.log_partition)

    def _embed(self, texts: Sequence[str], log_partition: Tensor) -> _Texts:
        embedded = self._model.embed_texts(texts).float().cpu()
        directions = self._prior.centred_texts(embedded).half()
        likely = posterior_beside(self._prior.regions @ directions.float().T, log_partition)
        mean = likely.probabilities.mean(0)
        return _Texts(tuple(texts), directions, mean, likely.log_partition)

    def _second_attributes(self, thing: str, scores: Sequence[float]) -> list[str]:
        """The best attribute of a thing together with each of those that follow it."""
        given = set(thing.split())
        attributes = [a for a in ATTRIBUTES if a not in given]
        order = sorted(range(len(attributes)), key=lambda i: -scores[i])[:_SECOND]
        first, *others = (attributes[i] for i in order)
        return [_with_attributes((first, other), thing) for other in others]

    def _score(self, region: Region, phrases: _Texts) -> _Scored:
        similarities = region.vectors @ phrases.directions.float().T
        likely = posterior_beside(similarities, region.log_partition)
        pmi = soft_wpmi(likely.probabilities, phrases.mean_posterior)
        return _Scored(pmi.tolist(), likely.log_partition)

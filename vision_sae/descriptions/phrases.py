"""Labels of several words: the best words of a unit, given attributes, parts and company.

A beam search: the best things ("apple") with every attribute
and as the whole of every part ("red apple", "stem of an apple"); then the best of these with a
second attribute ("shiny red apple"), and the best things in pairs ("apple with leaf"). A phrase has
the objective of a word, against its own prior, as if it and its likes were added to the
vocabulary. Its likes have to be: "white apple" is likelier for a red apple than for anything else,
and would pass for a label of red apples if "red apple" did not claim them.

Embedding texts takes nearly all the time. So the search is over imagined phrases, each the sum of
the directions of its words, which need no text tower; the few best, where they beat the best word,
are then embedded as whole texts and judged by that alone. Those of one unit are embedded together,
and nobody else's with them: a batch's composition moves the last bits of its vectors, and labels must
not depend on which units were asked for before.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import torch
import torch.nn.functional as F
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

_ADDITIONS = ATTRIBUTES + PARTS
MARGIN = math.log(len(_ADDITIONS))
"""By how many nats a phrase must be better than a word: what choosing one of so many additions to
the word is worth by itself."""
_KEPT = 2048
"""Things whose imagined phrases are kept in memory, about 10 KB each."""
_EMBEDDED = 6
"""Phrases of a unit that are embedded."""
_SECOND = 4
"""Attributes of which the best is tried with each other."""
_SAME = 0.6
"""Things whose directions have at least this cosine are too much alike to be "A with B"."""
_ORDER = {word: i for i, word in enumerate((*SIZES, *SHAPES, *TEXTURES, *COLOURS, *MATERIALS))}


class Region(NamedTuple):
    """What phrases are compared with: a unit's centred regions, strongest first."""

    vectors: Tensor
    """(n, E), of unit length."""
    log_partition: Tensor
    """Log of the denominator of each one's softmax over the vocabulary (n, 1)."""


class _Around(NamedTuple):
    """The prior of what can be imagined around a thing: A attributes, then parts."""

    mean_posterior: Tensor
    """Over the prior's regions (A + parts)."""
    log_partition: Tensor
    """Of the prior's regions, with these phrases (R, 1)."""


def _of_a(part: str, thing: str) -> str:
    return f"{part} of {'an' if thing[0] in 'aeiou' else 'a'} {thing}"


def _with_addition(addition: int, thing: str) -> str:
    word = _ADDITIONS[addition]
    return f"{word} {thing}" if addition < len(ATTRIBUTES) else _of_a(word, thing)


def _with_attributes(attributes: Sequence[str], thing: str) -> str:
    """As in "small striped red ball"."""
    return " ".join((*sorted(attributes, key=_ORDER.__getitem__), thing))


class PhraseSearch:
    """The beam search of one model and prior."""

    def __init__(self, model: ContrastiveModel, prior: Prior) -> None:
        self._model = model
        self._prior = prior
        self._additions = prior.centred_texts(model.embed_texts(_ADDITIONS).float().cpu())
        self._kept: OrderedDict[str, _Around] = OrderedDict()

    def search(
        self, region: Region, things: Sequence[str], directions: Tensor, word_pmi: float
    ) -> list[tuple[str, float]]:
        """Phrases that are worth a try and their pmi in nats, best first.

        ``things`` are the unit's best words, best first, ``directions`` (T, E) their centred
        embeddings, and ``word_pmi`` is what there is to beat. Whoever prefers the best of so many
        to a word must allow for `MARGIN`.
        """
        imagined = self._pairs(region, things, directions)
        for thing, direction in zip(things, directions, strict=True):
            imagined += self._with_additions(region, thing, direction)
        best = sorted(imagined, key=lambda phrase: -phrase[1])[:_EMBEDDED]
        texts = [text for text, pmi in best if pmi > word_pmi]
        if not texts:
            return []
        embedded = self._prior.centred_texts(self._model.embed_texts(texts).float().cpu())
        mean = self._over_prior(embedded, self._prior.log_partition).mean_posterior
        pmi, _ = self._score(region, embedded, mean)
        return sorted(zip(texts, pmi, strict=True), key=lambda phrase: -phrase[1])

    def _with_additions(
        self, region: Region, thing: str, direction: Tensor
    ) -> list[tuple[str, float]]:
        """A thing with an attribute, with two, and as the whole of a part, imagined."""
        around = F.normalize(self._additions + direction, dim=1)
        prior = self._around(thing, around)
        pmi, partition = self._score(region, around, prior.mean_posterior)
        given = set(thing.split())
        own = [i for i, addition in enumerate(_ADDITIONS) if addition not in given]
        attributes = sorted((i for i in own if i < len(ATTRIBUTES)), key=lambda i: -pmi[i])
        first, *others = attributes[:_SECOND]
        twice = F.normalize(self._additions[[first]] + self._additions[others] + direction, dim=1)
        mean = self._over_prior(twice, prior.log_partition).mean_posterior
        both, _ = self._score(region._replace(log_partition=partition), twice, mean)
        pairs = [(ATTRIBUTES[first], ATTRIBUTES[other]) for other in others]
        return [
            *((_with_addition(i, thing), pmi[i]) for i in own),
            *((_with_attributes(p, thing), v) for p, v in zip(pairs, both, strict=True)),
        ]

    def _pairs(
        self, region: Region, things: Sequence[str], directions: Tensor
    ) -> list[tuple[str, float]]:
        """ "A with B" of things that are not much the same, imagined."""
        pairs = [
            (i, j)
            for i, j in combinations(range(len(things)), 2)
            if float(directions[i] @ directions[j]) < _SAME
            and not set(things[i].split()) & set(things[j].split())
        ]
        if not pairs:
            return []
        one, other = torch.tensor(pairs).T
        sums = F.normalize(directions[one] + directions[other], dim=1)
        mean = self._over_prior(sums, self._prior.log_partition).mean_posterior
        pmi, _ = self._score(region, sums, mean)
        return [
            (f"{things[i]} with {things[j]}", value)
            for (i, j), value in zip(pairs, pmi, strict=True)
        ]

    def _around(self, thing: str, directions: Tensor) -> _Around:
        """`_over_prior` of a thing with each addition, kept for the next unit."""
        if thing not in self._kept:
            self._kept[thing] = self._over_prior(directions, self._prior.log_partition)
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return self._kept[thing]

    def _over_prior(self, directions: Tensor, log_partition: Tensor) -> _Around:
        likely = posterior_beside(self._prior.regions @ directions.T, log_partition)
        return _Around(likely.probabilities.mean(0), likely.log_partition)

    def _score(
        self, region: Region, directions: Tensor, mean_posterior: Tensor
    ) -> tuple[list[float], Tensor]:
        """pmi of each phrase (T), and the partition of the regions with all of them (n, 1)."""
        likely = posterior_beside(region.vectors @ directions.T, region.log_partition)
        pmi: list[float] = soft_wpmi(likely.probabilities, mean_posterior).tolist()
        return pmi, likely.log_partition

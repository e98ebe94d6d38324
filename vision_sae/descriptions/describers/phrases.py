"""Labels of several words: the best words of a unit, given attributes, parts and company.

A beam search: the best things ("apple") with every attribute
and as the whole of every part ("red apple", "stem of an apple"); then the best of these with a
second attribute ("shiny red apple"), and the best things in pairs ("apple with leaf"). A phrase has
the objective of a word, against its own prior, as if it and its likes were added to the
vocabulary. Its likes have to be: "white apple" is likelier for a red apple than for anything else,
and would pass for a label of red apples if "red apple" did not claim them.

Embedding texts takes nearly all the time. So the search is over imagined phrases, each the sum of
the directions of its words, which need no text tower; the few best, where they beat the best word,
are then embedded as whole texts, and each is judged in the place of its imagined twin. Those of one
unit are embedded together, and nobody else's with them: a batch's composition moves the last bits
of its vectors, and labels must not depend on which units were asked for before.
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

from vision_sae.descriptions.describers.attributes import (
    ATTRIBUTES,
    COLOURS,
    MATERIALS,
    PARTS,
    SHAPES,
    SIZES,
    TEXTURES,
)
from vision_sae.descriptions.describers.prior import Prior, posterior_beside
from vision_sae.descriptions.describers.wpmi import TEMPERATURE, soft_wpmi
from vision_sae.models.protocol import ContrastiveModel

_ADDITIONS = ATTRIBUTES + PARTS
MARGIN = math.log(len(_ADDITIONS))
"""By how many nats a phrase must be better than a word: what choosing one of so many additions to
the word is worth by itself."""
_WORTH_A_TRY = MARGIN / 2
"""By how many nats an imagined phrase must be better than the best word to be embedded."""
_KEPT = 2048
"""Things whose imagined phrases are kept in memory, about 10 KB each."""
_EMBEDDED = 6
"""Phrases of a unit that are embedded."""
_SECOND = 4
"""Attributes of which the best is tried with each other."""
_SAME = 0.6
"""Things whose directions have at least this cosine are too much alike to be "A with B"."""
_ROUNDING = 1e-6
"""A twin leaves at least this share to all others, so that rounding cannot leave less than none."""
_ORDER = {word: i for i, word in enumerate((*SIZES, *SHAPES, *TEXTURES, *COLOURS, *MATERIALS))}


class Phrase(NamedTuple):
    """A phrase that is worth a try."""

    text: str
    pmi: float
    """In nats."""
    direction: Tensor
    """Its centred embedding (E)."""


class Region(NamedTuple):
    """What phrases are compared with: a unit's centred regions, strongest first."""

    vectors: Tensor
    """(n, E), of unit length."""
    log_partition: Tensor
    """Log of the denominator of each one's softmax over the vocabulary (n, 1)."""


class _Known(NamedTuple):
    """The prior of phrases that compete with each other."""

    mean_posterior: Tensor
    """Over the prior's regions (T)."""
    log_partition: Tensor
    """Of the prior's regions, with these phrases (R, 1)."""


class _Imagined(NamedTuple):
    """A phrase that was not embedded, and what it competed with, itself included."""

    text: str
    pmi: float
    direction: Tensor
    """(E)"""
    log_partition: Tensor
    """Of the unit's regions (n, 1)."""
    prior_partition: Tensor
    """Of the prior's (R, 1)."""


def _of_a(part: str, thing: str) -> str:
    return f"{part} of {'an' if thing[0] in 'aeiou' else 'a'} {thing}"


def _with_addition(addition: int, thing: str) -> str:
    word = _ADDITIONS[addition]
    return f"{word} {thing}" if addition < len(ATTRIBUTES) else _of_a(word, thing)


def _with_attributes(attributes: Sequence[str], thing: str) -> str:
    """As in "small striped red ball"."""
    return " ".join((*sorted(attributes, key=_ORDER.__getitem__), thing))


def _posterior_instead(
    regions: Tensor, texts: Tensor, twins: Tensor, log_partitions: Tensor
) -> Tensor:
    """Probability (n, T) of each text in the place of its twin, which is in its partition (n, T).

    Regions, texts and twins are centred directions.
    """
    of_twins = torch.exp(TEMPERATURE * (regions @ twins.T) - log_partitions)
    others = log_partitions + torch.log1p(-of_twins.clamp(max=1 - _ROUNDING))
    return torch.sigmoid(TEMPERATURE * (regions @ texts.T) - others)


class PhraseSearch:
    """The beam search of one model and prior."""

    def __init__(self, model: ContrastiveModel, prior: Prior) -> None:
        self._model = model
        self._prior = prior
        self._additions = prior.centred_texts(model.embed_texts(_ADDITIONS).float().cpu())
        self._kept: OrderedDict[str, _Known] = OrderedDict()

    def search(
        self, region: Region, things: Sequence[str], directions: Tensor, word_pmi: float
    ) -> list[Phrase]:
        """Phrases that are worth a try, best first.

        ``things`` are the unit's best words, best first, ``directions`` (T, E) their centred
        embeddings, and ``word_pmi`` is what there is to beat. Whoever prefers the best of so many
        to a word must allow for `MARGIN`.
        """
        imagined = self._pairs(region, things, directions)
        for thing, direction in zip(things, directions, strict=True):
            imagined += self._with_additions(region, thing, direction)
        better = [phrase for phrase in imagined if phrase.pmi > word_pmi + _WORTH_A_TRY]
        best = sorted(better, key=lambda phrase: -phrase.pmi)[:_EMBEDDED]
        return self._embedded(region, best) if best else []

    def _with_additions(self, region: Region, thing: str, direction: Tensor) -> list[_Imagined]:
        """A thing with an attribute, with two, and as the whole of a part."""
        once = F.normalize(self._additions + direction, dim=1)
        texts = [_with_addition(i, thing) for i in range(len(_ADDITIONS))]
        found = self._imagine(region, texts, once, self._around(thing, once))
        given = set(thing.split())
        attributes = [i for i, word in enumerate(ATTRIBUTES) if word not in given]
        first, *others = sorted(attributes, key=lambda i: -found[i].pmi)[:_SECOND]
        twice = F.normalize(self._additions[first] + self._additions[others] + direction, dim=1)
        pairs = [
            _with_attributes((ATTRIBUTES[first], ATTRIBUTES[other]), thing) for other in others
        ]
        alone = found[first]
        found += self._imagine(
            region._replace(log_partition=alone.log_partition),
            pairs,
            twice,
            self._over_prior(twice, alone.prior_partition),
        )
        return [phrase for phrase in found if len(set(phrase.text.split())) > len(given)]

    def _pairs(self, region: Region, things: Sequence[str], directions: Tensor) -> list[_Imagined]:
        """ "A with B" of things that are not much the same."""
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
        texts = [f"{things[i]} with {things[j]}" for i, j in pairs]
        known = self._over_prior(sums, self._prior.log_partition)
        return self._imagine(region, texts, sums, known)

    def _around(self, thing: str, directions: Tensor) -> _Known:
        """The prior of a thing with each addition, kept for the next unit."""
        if thing not in self._kept:
            self._kept[thing] = self._over_prior(directions, self._prior.log_partition)
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return self._kept[thing]

    def _over_prior(self, directions: Tensor, log_partition: Tensor) -> _Known:
        likely = posterior_beside(self._prior.regions @ directions.T, log_partition)
        return _Known(likely.probabilities.mean(0), likely.log_partition)

    def _imagine(
        self, region: Region, texts: Sequence[str], directions: Tensor, known: _Known
    ) -> list[_Imagined]:
        likely = posterior_beside(region.vectors @ directions.T, region.log_partition)
        pmi = soft_wpmi(likely.probabilities, known.mean_posterior).tolist()
        return [
            _Imagined(text, value, direction, likely.log_partition, known.log_partition)
            for text, value, direction in zip(texts, pmi, directions, strict=True)
        ]

    def _embedded(self, region: Region, phrases: Sequence[_Imagined]) -> list[Phrase]:
        """The phrases as texts, each in the place of what was imagined; best first."""
        texts = [phrase.text for phrase in phrases]
        vectors = self._prior.centred_texts(self._model.embed_texts(texts).float().cpu())
        twins = torch.stack([phrase.direction for phrase in phrases])
        here = torch.cat([phrase.log_partition for phrase in phrases], dim=1)
        there = torch.cat([phrase.prior_partition for phrase in phrases], dim=1)
        likely = _posterior_instead(region.vectors, vectors, twins, here)
        mean = _posterior_instead(self._prior.regions, vectors, twins, there).mean(0)
        pmi: list[float] = soft_wpmi(likely, mean).tolist()
        made = map(Phrase, texts, pmi, vectors)
        return sorted(made, key=lambda phrase: -phrase.pmi)

"""Labels of several words: a unit's best words with attributes, parts and second things.

The beam search tries the best things ("apple") with every attribute and every part ("red apple",
"stem of an apple"), then the best of these phrases with a second attribute ("shiny red apple"), and
the best things in pairs ("apple with leaf"). The objective of a phrase is the objective of a word,
with a separate prior, as if the phrase and its competitors were added to the vocabulary. Competing
phrases must be in the softmax too: without "red apple", "white apple" would win on red apples.

Embedding texts takes nearly all of the time. So the search uses approximate phrases: the direction
of a phrase is the sum of the directions of its words, which needs no text encoder. The few best
phrases that exceed the best word are then embedded as whole texts, and each exact embedding
replaces its approximation in the softmax. The phrases of one unit are embedded in one batch, alone,
because the composition of a batch changes the last bits of its vectors, and labels must not depend
on earlier units.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import torch
import torch.nn.functional as F
from cachetools import FIFOCache
from jaxtyping import Float
from torch import Tensor

from vision_sae.descriptions.words.attributes import (
    ATTRIBUTES,
    COLOURS,
    MATERIALS,
    PARTS,
    SHAPES,
    SIZES,
    TEXTURES,
)
from vision_sae.descriptions.words.prior import Prior, posterior_beside
from vision_sae.descriptions.words.wpmi import TEMPERATURE, soft_wpmi
from vision_sae.models.protocol import ContrastiveModel

_ADDITIONS = ATTRIBUTES + PARTS
MARGIN = math.log(len(_ADDITIONS))
"""How many nats a phrase must exceed a word by: the log of the number of additions tried."""
_EMBEDDING_MARGIN = MARGIN / 2
"""How many nats an approximate phrase must exceed the best word by, to be embedded."""
_KEPT = 2048
"""Things whose approximate phrases are cached, about 10 KB each."""
_EMBEDDED = 6
"""The most phrases of a unit that are embedded."""
_SECOND = 4
"""The best attributes: the first of these is tried with each of the others."""
_SAME = 0.6
"""Two things whose directions have at least this cosine are too similar for "A with B"."""
_ROUNDING = 1e-6
"""Least probability of all other texts beside an approximation, a guard against rounding."""
_ORDER = {word: i for i, word in enumerate((*SIZES, *SHAPES, *TEXTURES, *COLOURS, *MATERIALS))}


class Phrase(NamedTuple):
    """A candidate phrase."""

    text: str
    pmi: float
    """Pointwise mutual information in nats."""
    direction: Float[Tensor, E]
    """The centred embedding."""


class UnitRegions(NamedTuple):
    """The n centred regions of a unit, strongest first."""

    vectors: Float[Tensor, "n E"]
    """The directions, of length 1."""
    log_partition: Float[Tensor, "n 1"]
    """Log of the denominator of each region's softmax over the vocabulary."""


class _PhrasePrior(NamedTuple):
    """The prior of phrases that compete with each other."""

    mean_posterior: Tensor
    """The mean probability of each phrase over the prior's regions (T)."""
    log_partition: Tensor
    """The partition of the prior's regions, with these phrases (R, 1)."""


class _Approximate(NamedTuple):
    """A phrase whose direction is the sum of its words, and the partitions with its competitors."""

    text: str
    pmi: float
    direction: Tensor
    """(E)"""
    log_partition: Tensor
    """The partition of the unit's regions (n, 1), with this phrase."""
    prior_partition: Tensor
    """The partition of the prior's regions (R, 1), with this phrase."""


def _of_a(part: str, thing: str) -> str:
    return f"{part} of {'an' if thing[0] in 'aeiou' else 'a'} {thing}"


def _with_addition(addition: int, thing: str) -> str:
    word = _ADDITIONS[addition]
    return f"{word} {thing}" if addition < len(ATTRIBUTES) else _of_a(word, thing)


def _with_attributes(attributes: Sequence[str], thing: str) -> str:
    """The attributes in English order before the thing, as in "small striped red ball"."""
    return " ".join((*sorted(attributes, key=_ORDER.__getitem__), thing))


def _posterior_instead(
    regions: Tensor, texts: Tensor, approximations: Tensor, log_partitions: Tensor
) -> Tensor:
    """Probability (n, T) of each text after it replaces its approximation in the softmax.

    ``log_partitions`` (n, T) include the approximations. Regions (n, E), texts (T, E) and
    approximations (T, E) are centred directions.
    """
    replaced = torch.exp(TEMPERATURE * (regions @ approximations.T) - log_partitions)
    others = log_partitions + torch.log1p(-replaced.clamp(max=1 - _ROUNDING))
    return torch.sigmoid(TEMPERATURE * (regions @ texts.T) - others)


class PhraseSearch:
    """The beam search of one model and prior."""

    def __init__(self, model: ContrastiveModel, prior: Prior) -> None:
        self._model = model
        self._prior = prior
        self._additions = prior.centred_texts(model.embed_texts(_ADDITIONS).float().cpu())
        self._kept: FIFOCache[str, _PhrasePrior] = FIFOCache(_KEPT)

    def search(
        self,
        region: UnitRegions,
        things: Sequence[str],
        directions: Float[Tensor, "T E"],
        word_pmi: float,
    ) -> list[Phrase]:
        """Phrases that may be better than the best word, best first.

        ``things`` are the unit's best words, best first, ``directions`` their centred embeddings,
        and ``word_pmi`` is the pmi of the best word. A phrase should replace the word only when it
        exceeds the word by `MARGIN`.
        """
        phrases = self._pairs(region, things, directions)
        for thing, direction in zip(things, directions, strict=True):
            phrases += self._with_additions(region, thing, direction)
        better = [phrase for phrase in phrases if phrase.pmi > word_pmi + _EMBEDDING_MARGIN]
        best = sorted(better, key=lambda phrase: -phrase.pmi)[:_EMBEDDED]
        return self._embedded(region, best) if best else []

    def _with_additions(
        self, region: UnitRegions, thing: str, direction: Tensor
    ) -> list[_Approximate]:
        """A thing with one attribute, with two attributes, and with a part."""
        once = F.normalize(self._additions + direction, dim=1)
        texts = [_with_addition(i, thing) for i in range(len(_ADDITIONS))]
        phrases = self._approximate(region, texts, once, self._around(thing, once))
        words = set(thing.split())
        attributes = [i for i, word in enumerate(ATTRIBUTES) if word not in words]
        first, *others = sorted(attributes, key=lambda i: -phrases[i].pmi)[:_SECOND]
        twice = F.normalize(self._additions[first] + self._additions[others] + direction, dim=1)
        pairs = [
            _with_attributes((ATTRIBUTES[first], ATTRIBUTES[other]), thing) for other in others
        ]
        alone = phrases[first]
        phrases += self._approximate(
            region._replace(log_partition=alone.log_partition),
            pairs,
            twice,
            self._over_prior(twice, alone.prior_partition),
        )
        return [phrase for phrase in phrases if len(set(phrase.text.split())) > len(words)]

    def _pairs(
        self, region: UnitRegions, things: Sequence[str], directions: Tensor
    ) -> list[_Approximate]:
        """ "A with B" for pairs of dissimilar things."""
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
        prior = self._over_prior(sums, self._prior.log_partition)
        return self._approximate(region, texts, sums, prior)

    def _around(self, thing: str, directions: Tensor) -> _PhrasePrior:
        """The prior of a thing with each addition, cached for further units."""
        if thing not in self._kept:
            self._kept[thing] = self._over_prior(directions, self._prior.log_partition)
        return self._kept[thing]

    def _over_prior(self, directions: Tensor, log_partition: Tensor) -> _PhrasePrior:
        posterior = posterior_beside(self._prior.regions @ directions.T, log_partition)
        return _PhrasePrior(posterior.probabilities.mean(0), posterior.log_partition)

    def _approximate(
        self, region: UnitRegions, texts: Sequence[str], directions: Tensor, prior: _PhrasePrior
    ) -> list[_Approximate]:
        posterior = posterior_beside(region.vectors @ directions.T, region.log_partition)
        pmi = soft_wpmi(posterior.probabilities, prior.mean_posterior).tolist()
        return [
            _Approximate(text, value, direction, posterior.log_partition, prior.log_partition)
            for text, value, direction in zip(texts, pmi, directions, strict=True)
        ]

    def _embedded(self, region: UnitRegions, phrases: Sequence[_Approximate]) -> list[Phrase]:
        """The phrases with exact embeddings in place of the approximations, best first."""
        texts = [phrase.text for phrase in phrases]
        vectors = self._prior.centred_texts(self._model.embed_texts(texts).float().cpu())
        sums = torch.stack([phrase.direction for phrase in phrases])
        here = torch.cat([phrase.log_partition for phrase in phrases], dim=1)
        there = torch.cat([phrase.prior_partition for phrase in phrases], dim=1)
        posterior = _posterior_instead(region.vectors, vectors, sums, here)
        mean = _posterior_instead(self._prior.regions, vectors, sums, there).mean(0)
        pmi: list[float] = soft_wpmi(posterior, mean).tolist()
        return sorted(map(Phrase, texts, pmi, vectors), key=lambda phrase: -phrase.pmi)

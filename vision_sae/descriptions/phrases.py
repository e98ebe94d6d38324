"""Labels of several words: the best words of a unit, given attributes, parts and company.

A beam search over texts, each embedded as a whole: the best things ("apple") with every attribute
and as the whole of every part ("red apple", "stem of an apple"); then the best of these with a
second attribute ("shiny red apple"), and the best things in pairs ("apple with leaf"). A phrase has
the objective of a word, against its own prior, as if it and its likes were added to the
vocabulary. Its likes have to be: "white apple" is likelier for a red apple than for anything else,
and would pass for a label of red apples if "red apple" did not claim them.

Embedding texts is what takes time. So a phrase is first imagined, as the sum of the directions of
its two sides, which needs no text tower. Only where something imagined beats the best word are the
phrases embedded.

They are embedded in batches that are always the same: all that is made of one thing, or all that is
tried last for one unit. A batch's composition moves the last bits of its vectors, and labels must
not depend on which units were asked for before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
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

MARGIN = math.log(len(ATTRIBUTES) + len(PARTS))
"""By how many nats a phrase must be better than a word: what choosing one of so many additions to
the word is worth by itself."""
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


class PhraseSearch:
    """The beam search of one model and prior."""

    def __init__(self, model: ContrastiveModel, prior: Prior) -> None:
        self._model = model
        self._prior = prior
        self._additions = prior.centred_texts(model.embed_texts(ATTRIBUTES + PARTS).float().cpu())
        self._around = lru_cache(maxsize=_KEPT)(self._embed_around)
        self._imagined_priors: dict[str, Tensor] = {}

    def search(
        self, region: Region, things: Sequence[str], directions: Tensor, word_pmi: float
    ) -> list[tuple[str, float]]:
        """Phrases and their pmi in nats, in the order in which they are tried.

        ``things`` are the unit's best words, best first, ``directions`` (T, E) their centred
        embeddings, and ``word_pmi`` is what there is to beat. Whoever prefers the best of so many
        to a word must allow for `MARGIN`.
        """
        found: list[tuple[str, float]] = []
        last: list[str] = []
        partition, prior_partition = region.log_partition, self._prior.log_partition
        to_beat = word_pmi + MARGIN
        for thing, direction in zip(things, directions, strict=True):
            if self._imagine_around(region, thing, direction) <= word_pmi:
                continue
            around = self._around(thing)
            scored = self._score(region, around)
            found += zip(around.texts, scored.pmi, strict=True)
            if max(scored.pmi) > to_beat:
                to_beat, last = max(scored.pmi), self._second_attributes(thing, scored.pmi)
                partition, prior_partition = scored.log_partition, around.log_partition
        last += self._pairs(region, things, directions, word_pmi)
        if last:
            texts = self._embed(last, prior_partition)
            scored = self._score(region._replace(log_partition=partition), texts)
            found += zip(last, scored.pmi, strict=True)
        return found

    def _imagine_around(self, region: Region, thing: str, direction: Tensor) -> float:
        """The best pmi of a thing with an attribute or part, imagined."""
        directions = F.normalize(self._additions + direction, dim=1)
        mean = self._imagined_priors.get(thing)
        if mean is None:
            mean = self._imagined_priors[thing] = self._imagined_prior(directions)
        return max(self._score_imagined(region, directions, mean))

    def _pairs(
        self, region: Region, things: Sequence[str], directions: Tensor, word_pmi: float
    ) -> list[str]:
        """ "A with B" of things that are not much the same, where it is worth a try."""
        pairs = [
            (i, j)
            for i, j in combinations(range(len(things)), 2)
            if float(directions[i] @ directions[j]) < _SAME
            and not set(things[i].split()) & set(things[j].split())
        ]
        if not pairs:
            return []
        first, second = torch.tensor(pairs).T
        sums = F.normalize(directions[first] + directions[second], dim=1)
        pmi = self._score_imagined(region, sums, self._imagined_prior(sums))
        return [
            f"{things[i]} with {things[j]}"
            for (i, j), value in zip(pairs, pmi, strict=True)
            if value > word_pmi
        ]

    def _imagined_prior(self, directions: Tensor) -> Tensor:
        similarities = self._prior.regions @ directions.T
        return posterior_beside(similarities, self._prior.log_partition).probabilities.mean(0)

    def _score_imagined(
        self, region: Region, directions: Tensor, mean_posterior: Tensor
    ) -> list[float]:
        likely = posterior_beside(region.vectors @ directions.T, region.log_partition)
        scores: list[float] = soft_wpmi(likely.probabilities, mean_posterior).tolist()
        return scores

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

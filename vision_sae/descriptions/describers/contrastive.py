"""Labels by search: which words make a contrastive model expect just these regions?

The regions a unit fires on (masked, one a source) are compared with every word of a vocabulary by
soft-WPMI (`vision_sae.descriptions.describers.wpmi`), against a prior that is stored
(`vision_sae.descriptions.describers.prior`). Phrases are then composed of the best words
(`vision_sae.descriptions.describers.phrases`); one is considered beside the words when it is better
than the best of them by a margin that allows for the choice among so many.

Many words come close to the best, and regions alone do not say which of them is absent elsewhere.
So the best few are judged once more, by how well they tell the pictures that fire the unit from
pictures that leave it silent. An AUC of A is the separation ``d' = sqrt(2) Phi^-1(A)`` of two
normal distributions of equal width (Green and Swets 1966), which is worth ``d'^2 / 2`` nats a
picture; so it adds to the pmi, which is in nats too. Among a hundred texts the best owes part of
its lead to luck: those that come within ``ln 100`` nats of it are as good, and of these the
likeliest is said, which is the plainest word more often than the one that happens to lead.

Where one text says too little, two are the label, "petal, flower": if the mean direction of both
tells the unit's pictures from silent ones better than the text alone, by what choosing a pair among
so many is worth. The second is found as the first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor

from vision_sae.descriptions.describers.phrases import MARGIN, Phrase, PhraseSearch, Region
from vision_sae.descriptions.describers.prior import Prior, load_prior
from vision_sae.descriptions.describers.vocabulary import Vocabulary, embed_vocabulary
from vision_sae.descriptions.describers.wpmi import TEMPERATURE, soft_wpmi
from vision_sae.descriptions.evidence.protocol import Evidence, Firing, silent, spaced, split
from vision_sae.descriptions.evidence.sources import Sources
from vision_sae.descriptions.probe import Probe
from vision_sae.descriptions.protocol import Description, Score
from vision_sae.models.protocol import ContrastiveModel
from vision_sae.vectors import normalised

_FEWEST_REGIONS = 5
"""Regions of independent sources below which no label is tried."""
_CANDIDATES = 10
"""Texts that are kept with a description."""
_CONSIDERED = 100
"""Words of which one or two become the label: on the demo's features ten gave a lower median AUC on
pictures they were not chosen by than thirty (.606 against .623, and .583 for the best pmi alone),
and thirty a lower one than a hundred (.702 and .713; .692 without pairs)."""
_LUCK = math.log(_CONSIDERED)
"""By how many nats the best of so many texts may lead by chance. Saying the likeliest of those
within it raised the AUC of the demo's labels against look-alikes, on 128 features of each model,
from .690 to .727 and lowered it from .757 to .733; twice as much cost labels."""
_PAIR_LUCK = 2 * _LUCK
"""A pair is one of a hundred times as many."""
_SILENT = 256
"""The most silent pictures, evenly spaced, that candidates are told from."""


class _Search(NamedTuple):
    """All that is known before a unit is looked at, for one evidence."""

    prior: Prior
    words: Tensor
    """Centred words (W, E), of unit length."""
    phrases: PhraseSearch
    sources: Sources


class _Pictures(NamedTuple):
    """What candidates are told apart by."""

    firing: NDArray[np.float32]
    """Embeddings of the pictures of a unit's regions (n, E)."""
    silent: NDArray[np.float32]
    """Embeddings of pictures that leave it silent (m, E)."""

    def told_apart_by(self, directions: NDArray[np.float32]) -> NDArray[np.float64]:
        """What it is worth, in nats, how each direction (T, E) tells one kind from the other by
        its cosines with whole pictures; 0 for all without silent pictures."""
        if not len(self.silent):
            return np.zeros(len(directions))
        return separation_nats(self.firing @ directions.T, self.silent @ directions.T)


class _Candidates(NamedTuple):
    """Texts of which one or two become the label."""

    texts: list[str]
    pmi: NDArray[np.float64]
    directions: NDArray[np.float32]
    """(T, E), of unit length."""
    tells: NDArray[np.float64]
    """See `_Pictures.told_apart_by`."""

    @property
    def worth(self) -> NDArray[np.float64]:
        """What speaks for each, in nats; those without pmi are none."""
        return np.where(self.pmi > 0, self.pmi + self.tells, -np.inf)


class ContrastiveDescriber:
    """Soft-WPMI over words, then a beam over phrases."""

    name = "contrastive"
    version = 6

    def __init__(
        self,
        model: ContrastiveModel,
        probe: Probe,
        vocabulary: Vocabulary,
        directory: Path,
        *,
        beam: int = 3,
    ) -> None:
        """A describer of evidence over the pictures of ``probe``, which ``model`` must have made.

        Word embeddings and priors are kept in ``directory``. ``beam`` is how many words are tried
        as the head of phrases; with 0, labels are words of the vocabulary.
        """
        self._model = model
        self._probe = probe
        self._vocabulary = vocabulary
        self._directory = directory
        self._beam = beam

    def describe(self, evidence: Evidence, units: Iterable[int]) -> Iterator[Description]:
        """Descriptions of ``units`` in order. Memory does not grow with their number.

        Raises `MismatchError` when the probe is of other pictures or of another model.
        """
        self._probe.check(self._model, evidence)
        search = self._prepare(evidence)
        for unit in units:
            firings = _independent(evidence, split(evidence, unit).describe)
            if len(firings) < _FEWEST_REGIONS or search is None:
                yield self._abstention(
                    unit,
                    f"fires in {len(firings)} independent images, fewer than {_FEWEST_REGIONS}",
                    firings,
                )
            else:
                with torch.inference_mode():
                    yield self._describe(evidence, unit, firings, search)

    def _prepare(self, evidence: Evidence) -> _Search | None:
        """None when no unit fires anywhere."""
        words = embed_vocabulary(self._model, self._vocabulary, self._directory)
        prior = load_prior(evidence, self._probe, words, self._vocabulary.identity, self._directory)
        if prior is None:
            return None
        phrases = PhraseSearch(self._model, prior)
        return _Search(prior, prior.centred_texts(words), phrases, Sources(evidence))

    def _describe(
        self, evidence: Evidence, unit: int, firings: list[Firing], search: _Search
    ) -> Description:
        vectors = torch.from_numpy(self._probe.regions(evidence, firings))
        regions = search.prior.centred_regions(vectors)
        logits = TEMPERATURE * (regions @ search.words.T)
        log_partition = torch.logsumexp(logits, dim=1, keepdim=True)
        scores = soft_wpmi(torch.exp(logits - log_partition), search.prior.mean_posterior)
        words = self._best_words(scores, search)
        phrases = self._phrases(Region(regions, log_partition), scores, search)
        if words[0].pmi <= 0:
            return self._abstention(unit, "no word is likelier than it is anywhere", firings)
        better = [phrase for phrase in phrases[:1] if phrase.pmi > words[0].pmi + MARGIN]
        pictures = self._pictures(evidence, unit, firings, search.sources)
        found = _candidates([*better, *words], pictures)
        best = _likeliest(found.pmi, found.worth)
        order = [best, *(i for i in np.argsort(-found.worth, kind="stable") if i != best)]
        ranked = [(found.texts[i], float(found.pmi[i])) for i in order]
        if pair := _with_another(found, best, pictures):
            ranked.insert(0, pair)
        text, pmi = ranked[0]
        return Description(
            unit,
            text,
            "",
            self.name,
            self.version,
            scores=(Score("pmi", pmi, len(firings)),),
            evidence=tuple(firing.patch for firing in firings),
            candidates=tuple(ranked[:_CANDIDATES]),
            details={
                "regions": len(firings),
                "tells": round(float(found.tells[best]), 4),
                "word": words[0].text,
                "word_pmi": round(words[0].pmi, 4),
                "phrases_embedded": len(phrases),
                "vocabulary": self._vocabulary.identity,
                "prior": search.prior.identity,
                "probe": self._probe.identity,
            },
        )

    def _best_words(self, scores: Tensor, search: _Search) -> list[Phrase]:
        values, rows = torch.topk(scores, min(_CONSIDERED, len(scores)))
        names = [self._vocabulary.words[row] for row in rows.tolist()]
        return list(map(Phrase, names, values.tolist(), search.words[rows]))

    def _pictures(
        self, evidence: Evidence, unit: int, firings: list[Firing], sources: Sources
    ) -> _Pictures:
        """The pictures of ``firings``, and silent ones of other sources."""
        fired = np.array([firing.image for firing in evidence.firings(unit)])
        others = silent(evidence, unit) & sources.for_describing & sources.none_of(fired)
        pictures = sources.first_of_each(np.flatnonzero(others))
        pictures = pictures[spaced(len(pictures), _SILENT)]
        shown = [firing.image for firing in firings]
        return _Pictures(self._probe.embeddings[shown], self._probe.embeddings[pictures])

    def _phrases(self, region: Region, scores: Tensor, search: _Search) -> list[Phrase]:
        """Phrases around the best things that are likelier here than anywhere, best first."""
        things = scores.masked_fill(~self._vocabulary.is_thing, -torch.inf)
        values, rows = torch.topk(things, min(self._beam, len(scores)))
        rows = rows[values > 0]
        if len(rows) == 0:
            return []
        names = [self._vocabulary.words[row] for row in rows.tolist()]
        return search.phrases.search(region, names, search.words[rows], float(scores.max()))

    def _abstention(self, unit: int, reason: str, firings: list[Firing]) -> Description:
        patches = tuple(firing.patch for firing in firings)
        return Description(unit, None, reason, self.name, self.version, evidence=patches)


def _candidates(phrases: list[Phrase], pictures: _Pictures) -> _Candidates:
    directions = torch.stack([phrase.direction for phrase in phrases]).numpy()
    return _Candidates(
        [phrase.text for phrase in phrases],
        np.array([phrase.pmi for phrase in phrases]),
        directions,
        pictures.told_apart_by(directions),
    )


def _likeliest(pmi: NDArray[np.float64], worth: NDArray[np.float64]) -> int:
    """Of the texts that are worth as much as the best but for luck, the one with most pmi."""
    return int(np.where(worth >= worth.max() - _LUCK, pmi, -np.inf).argmax())


def _with_another(found: _Candidates, best: int, pictures: _Pictures) -> tuple[str, float] | None:
    """The best candidate and another that tells more together with it, with their mean pmi; None
    where none that shares no word with it adds enough to be worth the choice."""
    both = found.directions + found.directions[best]
    pmi = (found.pmi + found.pmi[best]) / 2
    worth = pmi + pictures.told_apart_by(normalised(both))
    said = set(found.texts[best].split())
    repeats = [not said.isdisjoint(text.split()) for text in found.texts]
    worth[(found.pmi <= 0) | repeats] = -np.inf
    if worth.max() <= found.worth[best] + _PAIR_LUCK:
        return None
    other = _likeliest(found.pmi, worth)
    return f"{found.texts[best]}, {found.texts[other]}", float(pmi[other])


def separation_nats(shown: NDArray[np.float32], hidden: NDArray[np.float32]) -> NDArray[np.float64]:
    """What it is worth, in nats, how the columns of ``shown`` (n, T) exceed those of ``hidden``
    (m, T): ``n d'^2 / 2`` with ``d' = sqrt(2) Phi^-1(AUC)``, negative for an AUC below one half."""
    n, m = len(shown), len(hidden)
    above = (shown[:, None] > hidden[None]).sum((0, 1)) + (shown[:, None] == hidden[None]).sum(
        (0, 1)
    ) / 2
    # Half a pair on either side: a perfect AUC of few pictures is not worth infinitely much.
    quantile = ndtri((above + 0.5) / (n * m + 1))
    return np.asarray(n * np.sign(quantile) * quantile**2, dtype=np.float64)


def _independent(evidence: Evidence, firings: list[Firing]) -> list[Firing]:
    """The strongest firing of each source; strongest first."""
    first: dict[str, Firing] = {}
    for firing in firings:
        first.setdefault(evidence.images[firing.image].origin, firing)
    return list(first.values())

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
picture; so it adds to the pmi, which is in nats too.
"""

from __future__ import annotations

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

_FEWEST_REGIONS = 5
"""Regions of independent sources below which no label is tried."""
_CANDIDATES = 10
"""Texts that are kept with a description."""
_CONSIDERED = 30
"""Texts of which one becomes the label: on the demo's features ten gave a lower median AUC on
pictures they were not chosen by (.606 against .623, and .583 for the best pmi alone)."""
_SILENT = 256
"""The most silent pictures, evenly spaced, that candidates are told from."""


class _Search(NamedTuple):
    """All that is known before a unit is looked at, for one evidence."""

    prior: Prior
    words: Tensor
    """Centred words (W, E), of unit length."""
    phrases: PhraseSearch
    sources: Sources


class ContrastiveDescriber:
    """Soft-WPMI over words, then a beam over phrases."""

    name = "contrastive"
    version = 3

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
        considered = [*better, *words]
        tells = self._telling(evidence, unit, firings, considered, search.sources)
        pmi = np.array([candidate.pmi for candidate in considered])
        order = np.argsort(-np.where(pmi > 0, pmi + tells, -np.inf), kind="stable")
        ranked = [considered[i] for i in order]
        return Description(
            unit,
            ranked[0].text,
            "",
            self.name,
            self.version,
            scores=(Score("pmi", ranked[0].pmi, len(firings)),),
            evidence=tuple(firing.patch for firing in firings),
            candidates=tuple((c.text, c.pmi) for c in ranked[:_CANDIDATES]),
            details={
                "regions": len(firings),
                "tells": round(float(tells[order[0]]), 4),
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

    def _telling(
        self,
        evidence: Evidence,
        unit: int,
        firings: list[Firing],
        candidates: list[Phrase],
        sources: Sources,
    ) -> NDArray[np.float64]:
        """What it is worth, in nats, how each candidate tells the pictures of ``firings`` from
        silent ones by its cosines with whole pictures; 0 for all without silent pictures."""
        fired = np.array([firing.image for firing in evidence.firings(unit)])
        others = silent(evidence, unit) & sources.for_describing & sources.none_of(fired)
        pictures = sources.first_of_each(np.flatnonzero(others))
        if not len(pictures):
            return np.zeros(len(candidates))
        pictures = pictures[spaced(len(pictures), _SILENT)]
        directions = torch.stack([candidate.direction for candidate in candidates]).numpy()
        shown = self._probe.embeddings[[firing.image for firing in firings]] @ directions.T
        hidden = self._probe.embeddings[pictures] @ directions.T
        return separation_nats(shown, hidden)

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

"""Labels by search: which words make a contrastive model expect just these regions?

The regions a unit fires on (masked, one a source) are compared with every word of a vocabulary by
soft-WPMI (`vision_sae.descriptions.describers.wpmi`), against a prior that is stored
(`vision_sae.descriptions.describers.prior`). Phrases are then composed of the best words
(`vision_sae.descriptions.describers.phrases`); one is preferred to the best word when it is better
by a margin that allows for the choice among so many.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from vision_sae.descriptions.describers.phrases import MARGIN, PhraseSearch, Region
from vision_sae.descriptions.describers.prior import Prior, load_prior
from vision_sae.descriptions.describers.vocabulary import Vocabulary, embed_vocabulary
from vision_sae.descriptions.describers.wpmi import TEMPERATURE, soft_wpmi
from vision_sae.descriptions.evidence.protocol import Evidence, Firing, split
from vision_sae.descriptions.probe import Probe
from vision_sae.descriptions.protocol import Description, Score
from vision_sae.models.protocol import ContrastiveModel

_FEWEST_REGIONS = 5
"""Regions of independent sources below which no label is tried."""
_CANDIDATES = 10


class _Search(NamedTuple):
    """All that is known before a unit is looked at, for one evidence."""

    prior: Prior
    words: Tensor
    """Centred words (W, E), of unit length."""
    phrases: PhraseSearch


class ContrastiveDescriber:
    """Soft-WPMI over words, then a beam over phrases."""

    name = "contrastive"
    version = 1

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
        return _Search(prior, prior.centred_texts(words), PhraseSearch(self._model, prior))

    def _describe(
        self, evidence: Evidence, unit: int, firings: list[Firing], search: _Search
    ) -> Description:
        vectors = torch.from_numpy(self._probe.regions(evidence, firings))
        regions = search.prior.centred_regions(vectors)
        logits = TEMPERATURE * (regions @ search.words.T)
        log_partition = torch.logsumexp(logits, dim=1, keepdim=True)
        scores = soft_wpmi(torch.exp(logits - log_partition), search.prior.mean_posterior)
        words = self._best_words(scores)
        phrases = self._phrases(Region(regions, log_partition), scores, search)
        text, pmi = words[0]
        if phrases and phrases[0][1] > pmi + MARGIN:
            text, pmi = phrases[0]
        if pmi <= 0:
            return self._abstention(unit, "no word is likelier than it is anywhere", firings)
        ranked = sorted([*words, *phrases[:_CANDIDATES]], key=lambda candidate: -candidate[1])
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
                "word": words[0][0],
                "word_pmi": round(words[0][1], 4),
                "phrases_embedded": len(phrases),
                "vocabulary": self._vocabulary.identity,
                "prior": search.prior.identity,
                "probe": self._probe.identity,
            },
        )

    def _best_words(self, scores: Tensor) -> list[tuple[str, float]]:
        values, rows = torch.topk(scores, min(_CANDIDATES, len(scores)))
        names = (self._vocabulary.words[row] for row in rows.tolist())
        return list(zip(names, values.tolist(), strict=True))

    def _phrases(self, region: Region, scores: Tensor, search: _Search) -> list[tuple[str, float]]:
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


def _independent(evidence: Evidence, firings: list[Firing]) -> list[Firing]:
    """The strongest firing of each source; strongest first."""
    first: dict[str, Firing] = {}
    for firing in firings:
        first.setdefault(evidence.images[firing.image].origin, firing)
    return list(first.values())

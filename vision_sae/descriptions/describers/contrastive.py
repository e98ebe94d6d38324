"""Labels by search: the words that a contrastive model associates with a unit's regions.

The firing regions of a unit (masked, one for each source) are compared with every word of a
vocabulary by soft-WPMI (`vision_sae.descriptions.words.wpmi`), against a stored prior
(`vision_sae.descriptions.words.prior`). Phrases are then composed of the best words
(`vision_sae.descriptions.words.phrases`). The best phrase becomes a candidate when it exceeds the
best word by a margin for the number of phrases tried.

Many words come close to the best word, and the regions alone do not show which word is absent from
other pictures. So the best words are compared again, by how well each separates the firing pictures
from silent pictures. An AUC of A is the separation ``d' = sqrt(2) Phi^-1(A)`` of two normal
distributions of equal width (Green and Swets 1966), or ``d'^2 / 2`` nats for each picture. This
value is added to the pmi, which is in nats too. Among a hundred texts, the maximum is partly due to
chance. All texts within ``ln 100`` nats of the maximum count as equal, and the label is the text of
largest pmi among these texts: a plain word more often than the text of the maximum is.

Two texts can form the label, as in "petal, flower". A second text is added when the mean direction
of both texts separates the pictures better than the first text alone, by a margin for the number
of pairs. The second text is chosen in the same way as the first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from pydantic import Field
from scipy.special import ndtri
from torch import Tensor

from vision_sae.descriptions.kinds import DescriberKind, register_describer
from vision_sae.descriptions.protocol import Description, Score
from vision_sae.descriptions.words.phrases import MARGIN, Phrase, PhraseSearch, UnitRegions
from vision_sae.descriptions.words.prior import Prior, load_prior
from vision_sae.descriptions.words.vocabulary import Vocabulary, embed_vocabulary
from vision_sae.descriptions.words.wpmi import TEMPERATURE, soft_wpmi
from vision_sae.errors import NotFoundError
from vision_sae.evidence.probe import Probe
from vision_sae.evidence.protocol import Evidence, Firing, silent, spaced, split
from vision_sae.evidence.sources import Sources
from vision_sae.files import sha256_json
from vision_sae.models.protocol import ContrastiveModel
from vision_sae.sections import Section
from vision_sae.vectors import normalised

_FEWEST_REGIONS = 5
"""The fewest regions of independent sources for a label."""
_CANDIDATES = 10
"""Texts in the candidates of a description."""
_CONSIDERED = 100
"""Words of which one or two become the label. On the demo's features, the median AUC on held-out
pictures was .606 for ten words, .623 for thirty, and .583 for the best pmi alone. A second
measurement gave .702 for thirty words and .713 for a hundred (.692 without pairs)."""
_LUCK = math.log(_CONSIDERED)
"""Margin in nats for the maximum over so many texts. Choosing the largest pmi within the margin
changed the AUC of the demo's labels against look-alikes, on 128 features of each model, from .690
to .727 for one model and from .757 to .733 for another; twice the margin lost labels."""
_PAIR_LUCK = 2 * _LUCK
"""About a hundred times as many pairs as words are tried, so the margin in nats doubles."""
_SILENT = 256
"""The most silent pictures, evenly spaced, that candidates are compared on."""


class ContrastiveConfig(Section):
    """Labels by search with a contrastive model."""

    vocabulary: Path | None = None
    """Text file of words and phrases, one a line; when absent, words from the captions."""
    beam: int = Field(3, ge=0, le=50)
    """Words tried as the head of phrases; with 0, labels are words of the vocabulary."""


class _Search(NamedTuple):
    """The data of a search for one evidence, shared by all units."""

    prior: Prior
    words: Tensor
    """Centred words (W, E), of length 1."""
    phrases: PhraseSearch
    sources: Sources


class _Pictures(NamedTuple):
    """Whole pictures that candidates must separate."""

    firing: NDArray[np.float32]
    """Embeddings of the pictures of a unit's regions (n, E)."""
    silent: NDArray[np.float32]
    """Embeddings of pictures in which the unit is silent (m, E)."""

    def separation(self, directions: NDArray[np.float32]) -> NDArray[np.float64]:
        """The separation of firing from silent pictures by each direction (T, E), in nats.

        The cosine of a picture with the direction is the classifier. All zeros without silent
        pictures.
        """
        if not len(self.silent):
            return np.zeros(len(directions))
        return separation_nats(self.firing @ directions.T, self.silent @ directions.T)


class _Candidates(NamedTuple):
    """T texts of which one or two become the label."""

    texts: list[str]
    pmi: NDArray[np.float64]
    directions: NDArray[np.float32]
    """(T, E), of length 1."""
    separation: NDArray[np.float64]
    """See `_Pictures.separation`."""

    @property
    def objective(self) -> NDArray[np.float64]:
        """Pmi and separation in nats; minus infinity for a text without positive pmi."""
        return np.where(self.pmi > 0, self.pmi + self.separation, -np.inf)


class ContrastiveDescriber:
    """Labels by search: the words that a contrastive model associates with a unit's regions.

    Words are ranked by soft-WPMI; phrases are composed of the best words by a beam search.
    """

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
        """A describer of evidence over the pictures of ``probe``, whose embeddings are ``model``'s.

        ``directory`` holds caches of word embeddings and priors. ``beam`` is the number of words
        tried as the head of phrases; with 0, labels are words of the vocabulary.
        """
        self._model = model
        self._probe = probe
        self._vocabulary = vocabulary
        self._directory = directory
        self._beam = beam

    def describe(self, evidence: Evidence, units: Iterable[int]) -> Iterator[Description]:
        """Descriptions of ``units`` in order; memory does not grow with the number of units.

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
                    description = self._describe(evidence, unit, firings, search)
                # The mode ends before the caller goes on, who may need gradients or never return.
                yield description

    def _prepare(self, evidence: Evidence) -> _Search | None:
        """The data of the search; None when no unit fires in any picture."""
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
        phrases = self._phrases(UnitRegions(regions, log_partition), scores, search)
        if words[0].pmi <= 0:
            reason = "no word is more probable for its regions than for all regions"
            return self._abstention(unit, reason, firings)
        better = [phrase for phrase in phrases[:1] if phrase.pmi > words[0].pmi + MARGIN]
        pictures = self._pictures(evidence, unit, firings, search.sources)
        candidates = _candidates([*better, *words], pictures)
        best = _likeliest(candidates.pmi, candidates.objective)
        ordered = np.argsort(-candidates.objective, kind="stable")
        order = [best, *(i for i in ordered if i != best)]
        ranked = [(candidates.texts[i], float(candidates.pmi[i])) for i in order]
        if pair := _best_pair(candidates, best, pictures):
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
                "tells": round(float(candidates.separation[best]), 4),
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
        """The pictures of ``firings``, and silent pictures of other sources."""
        fired = np.array([firing.image for firing in evidence.firings(unit)])
        others = silent(evidence, unit) & sources.for_describing & sources.none_of(fired)
        pictures = sources.first_of_each(np.flatnonzero(others))
        pictures = pictures[spaced(len(pictures), _SILENT)]
        shown = [firing.image for firing in firings]
        return _Pictures(self._probe.embeddings[shown], self._probe.embeddings[pictures])

    def _phrases(self, region: UnitRegions, scores: Tensor, search: _Search) -> list[Phrase]:
        """Phrases whose head is one of the best nouns with positive pmi, best first."""
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
        pictures.separation(directions),
    )


def _likeliest(pmi: NDArray[np.float64], objective: NDArray[np.float64]) -> int:
    """The text of largest pmi among all texts within `_LUCK` of the largest objective."""
    return int(np.where(objective >= objective.max() - _LUCK, pmi, -np.inf).argmax())


def _best_pair(candidates: _Candidates, best: int, pictures: _Pictures) -> tuple[str, float] | None:
    """The best candidate joined with a second text, and the mean pmi of both.

    The two texts share no word. None when no pair exceeds the best candidate by `_PAIR_LUCK`.
    """
    texts = candidates.texts
    both = candidates.directions + candidates.directions[best]
    pmi = (candidates.pmi + candidates.pmi[best]) / 2
    objective = pmi + pictures.separation(normalised(both))
    words = set(texts[best].split())
    repeats = [not words.isdisjoint(text.split()) for text in texts]
    objective[(candidates.pmi <= 0) | repeats] = -np.inf
    if objective.max() <= candidates.objective[best] + _PAIR_LUCK:
        return None
    other = _likeliest(candidates.pmi, objective)
    return f"{texts[best]}, {texts[other]}", float(pmi[other])


def separation_nats(
    firing: Float[np.ndarray, "n T"], silent: Float[np.ndarray, "m T"]
) -> Float[np.ndarray, T]:
    """The separation of two samples in nats: ``n d'^2 / 2`` with ``d' = sqrt(2) Phi^-1(AUC)``.

    The value is negative for an AUC below one half.
    """
    n, m = len(firing), len(silent)
    above = (firing[:, None] > silent[None]).sum((0, 1)) + (firing[:, None] == silent[None]).sum(
        (0, 1)
    ) / 2
    # Half a pair is added on either side, so that a perfect AUC of few pictures stays finite.
    quantile = ndtri((above + 0.5) / (n * m + 1))
    return np.asarray(n * np.sign(quantile) * quantile**2, dtype=np.float64)


def _independent(evidence: Evidence, firings: list[Firing]) -> list[Firing]:
    """The strongest firing of each source, strongest first."""
    first: dict[str, Firing] = {}
    for firing in firings:
        first.setdefault(evidence.images[firing.image].origin, firing)
    return list(first.values())


def _check(settings: ContrastiveConfig) -> None:
    """Raise `NotFoundError` for a vocabulary file that does not exist."""
    if settings.vocabulary is not None and not settings.vocabulary.exists():
        raise NotFoundError(
            f"there is no vocabulary at {settings.vocabulary}; check the path",
            field="describe.contrastive.vocabulary",
        )


def _contents(settings: ContrastiveConfig) -> dict[str, str]:
    """The hash of the words in the vocabulary file."""
    if settings.vocabulary is None:
        return {}
    return {"vocabulary": sha256_json(Vocabulary.read(settings.vocabulary).words)}


CONTRASTIVE = register_describer(
    DescriberKind(
        ContrastiveDescriber,
        ContrastiveConfig,
        lambda tools, evidence, settings: ContrastiveDescriber(
            tools.clip,
            tools.probe(evidence),
            tools.vocabulary(evidence),
            tools.directory,
            beam=settings.beam,
        ),
        needs=("contrastive model",),
        one_thread=True,
        check=_check,
        contents=_contents,
    )
)

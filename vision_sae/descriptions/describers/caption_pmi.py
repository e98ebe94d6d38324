"""Labels from the captions of the data set: words that are frequent where a feature fires.

The exemplar pictures of a feature are compared with all pictures. A word in the captions of n_e of
the E exemplars and of n of all N pictures has the pointwise mutual information
``log((n_e + a) / (E + 2 a)) - log((n + a) / (N + 2 a))`` (additive smoothing a), and the one-sided
p-value of Fisher's exact test, corrected over all words (Benjamini and Hochberg). A word of fewer
than `_FEWEST_CAPTIONS` captions is not tested: it could never be significant, and each test lowers
the power of all others. The significant words form the label; without any significant word, the
describer abstains.

Pictures of one source (crops of one photograph, say) are not independent, so all four numbers count
sources. A source has the words of all its pictures. Among the exemplars, a source has the words of
its exemplar pictures only: crops in which the feature does not fire add no words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.stats import false_discovery_control, hypergeom

from vision_sae.activations.store import ImageRecord, sources_of
from vision_sae.descriptions.kinds import DescriberKind, register_describer
from vision_sae.descriptions.protocol import Description, Score
from vision_sae.descriptions.words.function_words import FUNCTION_WORDS
from vision_sae.evidence.protocol import Evidence, split
from vision_sae.sections import Section

_WORD = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*")
_SMOOTHING = 0.5
_FEWEST_IMAGES = 5
"""The fewest independent exemplar pictures for a label."""
_FEWEST_CAPTIONS = 4
"""The fewest sources whose captions contain a word, for the word to be tested."""


class CaptionPmiConfig(Section):
    """Labels from the captions of the data set."""

    words: int = Field(3, ge=1, le=10)
    """The most words in a label."""
    significance: float = Field(0.01, gt=0, lt=1)
    """Largest corrected p-value a word may have."""


def words(caption: str) -> frozenset[str]:
    """The distinct content words of a caption, in lower case."""
    return frozenset(_WORD.findall(caption.lower())) - FUNCTION_WORDS


def _by_source(source: NDArray[np.int64], present: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether a source has a word (S, V), from each picture's source (N) and words (N, V)."""
    _, row = np.unique(source, return_inverse=True)
    of_source = np.zeros((row.max(initial=-1) + 1, present.shape[1]), dtype=np.bool_)
    np.logical_or.at(of_source, row, present)
    return of_source


class _Vocabulary(NamedTuple):
    """The V words in the captions of N pictures."""

    words: list[str]
    present: NDArray[np.bool_]
    """Whether a picture has a word (N, V)."""
    source: NDArray[np.int64]
    """The number of each picture's source (N)."""
    everywhere: NDArray[np.int64]
    """The number of sources with each word (V)."""
    sources: int
    """The number of all sources."""


@lru_cache(maxsize=8)
def _vocabulary(images: tuple[ImageRecord, ...]) -> _Vocabulary:
    per_image = [words(" ".join((image.caption, *image.tags))) for image in images]
    source = sources_of(images)
    sources = int(source.max(initial=-1)) + 1
    of_source: list[set[str]] = [set() for _ in range(sources)]
    for owner, in_image in zip(source, per_image, strict=True):
        of_source[owner] |= in_image
    occurrences = Counter(word for in_source in of_source for word in in_source)
    vocabulary = sorted(w for w, count in occurrences.items() if count >= _FEWEST_CAPTIONS)
    column = {word: i for i, word in enumerate(vocabulary)}
    present = np.zeros((len(images), len(vocabulary)), dtype=np.bool_)
    for row, in_image in enumerate(per_image):
        present[row, [column[word] for word in in_image if word in column]] = True
    everywhere = np.array([occurrences[word] for word in vocabulary], dtype=np.int64)
    return _Vocabulary(vocabulary, present, source, everywhere, sources)


class CaptionPmi:
    """Labels from captions: words that are frequent where a unit fires."""

    name = "caption-pmi"
    version = 5

    def __init__(self, config: CaptionPmiConfig) -> None:
        self._config = config

    def describe(self, evidence: Evidence, units: Iterable[int]) -> Iterator[Description]:
        """Descriptions of ``units`` in order."""
        vocabulary = _vocabulary(tuple(evidence.images))
        for unit in units:
            seen = split(evidence, unit).describe
            images = np.array([firing.image for firing in seen], dtype=np.int64)
            in_exemplars = _by_source(vocabulary.source[images], vocabulary.present[images])
            patches = tuple(firing.patch for firing in seen)
            yield self._describe(unit, vocabulary, in_exemplars, patches)

    def _describe(
        self,
        feature: int,
        vocabulary: _Vocabulary,
        in_exemplars: NDArray[np.bool_],
        evidence: tuple[int, ...],
    ) -> Description:
        def description(text: str | None, abstained: str = "", **rest: object) -> Description:
            return Description(
                feature,
                text,
                abstained,
                self.name,
                self.version,
                evidence=evidence,
                **rest,  # type: ignore[arg-type]
            )

        drawn = len(in_exemplars)
        if drawn < _FEWEST_IMAGES:
            return description(
                None, f"{drawn} independent pictures to describe it by, fewer than {_FEWEST_IMAGES}"
            )
        hits, everywhere = in_exemplars.sum(axis=0), vocabulary.everywhere
        seen = np.flatnonzero(hits)
        if len(seen) == 0:
            return description(None, "none of its exemplars has a caption")
        p = np.ones(len(vocabulary.words))
        p[seen] = hypergeom.sf(hits[seen] - 1, vocabulary.sources, everywhere[seen], drawn)
        corrected = false_discovery_control(p)
        share = (hits[seen] + _SMOOTHING) / (drawn + 2 * _SMOOTHING)
        prior = (everywhere[seen] + _SMOOTHING) / (vocabulary.sources + 2 * _SMOOTHING)
        pmi = dict(zip(seen.tolist(), np.log(share / prior).tolist(), strict=True))
        significant = [w for w in seen.tolist() if corrected[w] <= self._config.significance]
        if not significant:
            return description(
                None, f"no caption word is significant at {self._config.significance}"
            )
        chosen = sorted(significant, key=lambda w: (corrected[w], -pmi[w]))[: self._config.words]
        value = float(np.mean([pmi[w] for w in chosen]))
        return description(
            ", ".join(vocabulary.words[w] for w in chosen),
            scores=(Score("pmi", value, drawn),),
            candidates=tuple((vocabulary.words[w], pmi[w]) for w in chosen),
            details={
                "words": [
                    {
                        "word": vocabulary.words[w],
                        "pmi": round(pmi[w], 4),
                        "p_value": float(corrected[w]),
                        "exemplar_sources": int(hits[w]),
                        "sources": int(everywhere[w]),
                    }
                    for w in chosen
                ]
            },
        )


CAPTION_PMI = register_describer(
    DescriberKind(
        CaptionPmi,
        CaptionPmiConfig,
        lambda tools, evidence, settings: CaptionPmi(settings),
        needs=("captions",),
        one_thread=True,
    )
)

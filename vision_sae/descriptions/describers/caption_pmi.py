"""Labels from the corpus' captions: which words go with a feature's firing?

For a feature, the exemplar images are compared with all images. A word that n_e of the E exemplars
and n of all N images have in their captions has the pointwise mutual information
``log((n_e + a) / (E + 2 a)) - log((n + a) / (N + 2 a))`` (additive smoothing a), and the one-sided
Fisher exact p-value of drawing that many by chance, corrected over all words by Benjamini and
Hochberg. Words of fewer than `_FEWEST_CAPTIONS` captions are not tried: they could never be
significant and would only weaken the others. Words that stay significant make the label; without
any the describer abstains.

Images of one source (crops of one photograph, say) are not independent: all four numbers count
sources. A source has the words of all its images; among the exemplars, of those that are exemplars,
so that the crops in which a feature does not fire lend it no words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import false_discovery_control, hypergeom

from vision_sae.activations.store import ImageRecord, sources_of
from vision_sae.config import CaptionPmiConfig
from vision_sae.descriptions.describers.function_words import FUNCTION_WORDS
from vision_sae.descriptions.evidence.protocol import Evidence, split
from vision_sae.descriptions.protocol import Description, Score

_WORD = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*")
_SMOOTHING = 0.5
_FEWEST_IMAGES = 5
"""Independent exemplar images below which no label is tried."""
_FEWEST_CAPTIONS = 4
"""Sources whose captions must hold a word before it is tried."""


def words(caption: str) -> frozenset[str]:
    """The distinct content words of a caption, in lower case."""
    return frozenset(_WORD.findall(caption.lower())) - FUNCTION_WORDS


def _by_source(source: NDArray[np.int64], present: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which source has which word (S, V), from the source of each image and its words (N, V)."""
    _, row = np.unique(source, return_inverse=True)
    held = np.zeros((row.max(initial=-1) + 1, present.shape[1]), dtype=np.bool_)
    np.logical_or.at(held, row, present)
    return held


class _Vocabulary(NamedTuple):
    """The words of a data set, and who has them."""

    words: list[str]
    present: NDArray[np.bool_]
    """Which image has which word (N, V)."""
    source: NDArray[np.int64]
    """The number of each image's source (N)."""
    everywhere: NDArray[np.int64]
    """How many sources have each word (V)."""
    sources: int
    """Sources in all."""


@lru_cache(maxsize=8)
def _vocabulary(images: tuple[ImageRecord, ...]) -> _Vocabulary:
    per_image = [words(" ".join((image.caption, *image.tags))) for image in images]
    source = sources_of(images)
    sources = int(source.max(initial=-1)) + 1
    of_source: list[set[str]] = [set() for _ in range(sources)]
    for owner, found in zip(source, per_image, strict=True):
        of_source[owner] |= found
    occurrences = Counter(word for found in of_source for word in found)
    vocabulary = sorted(w for w, count in occurrences.items() if count >= _FEWEST_CAPTIONS)
    column = {word: i for i, word in enumerate(vocabulary)}
    present = np.zeros((len(images), len(vocabulary)), dtype=np.bool_)
    for row, found in enumerate(per_image):
        present[row, [column[word] for word in found if word in column]] = True
    everywhere = np.array([occurrences[word] for word in vocabulary], dtype=np.int64)
    return _Vocabulary(vocabulary, present, source, everywhere, sources)


class CaptionPmi:
    """The first describer: the baseline that later ones must beat."""

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

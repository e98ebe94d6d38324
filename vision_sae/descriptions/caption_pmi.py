"""Labels from the corpus' captions: which words go with a feature's firing?

For a feature, the exemplar images are compared with all images. A word that n_e of the E exemplar
captions and n of all N captions hold has the pointwise mutual information
``log((n_e + a) / (E + 2 a)) - log((n + a) / (N + 2 a))`` (additive smoothing a), and the one-sided
Fisher exact p-value of drawing that many by chance, corrected over all words by Benjamini and
Hochberg. Words of fewer than `_FEWEST_CAPTIONS` captions are not tried: they could never be
significant and would only weaken the others. Words that stay significant make the label; without
any the describer abstains.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.stats import false_discovery_control, hypergeom

from vision_sae.bundles.bundle import Bundle
from vision_sae.config import DescribeConfig
from vision_sae.descriptions.protocol import Description, Score

_WORD = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*")
_FUNCTION_WORDS = frozenset(
    _WORD.findall(
        "a an and as at by for from in into is it its of on onto or over that the their there "
        "this to under with without"
    )
)
_SMOOTHING = 0.5
_FEWEST_IMAGES = 5
"""Exemplar images below which no label is tried."""
_FEWEST_CAPTIONS = 4
"""Captions that must hold a word before it is tried."""


def words(caption: str) -> frozenset[str]:
    """The distinct content words of a caption, in lower case."""
    return frozenset(_WORD.findall(caption.lower())) - _FUNCTION_WORDS


@lru_cache(maxsize=8)
def _vocabulary(captions: tuple[str, ...]) -> tuple[list[str], NDArray[np.bool_]]:
    """(words, which image holds which word (N, V))"""
    per_image = [words(caption) for caption in captions]
    occurrences = Counter(word for found in per_image for word in found)
    vocabulary = sorted(w for w, count in occurrences.items() if count >= _FEWEST_CAPTIONS)
    column = {word: i for i, word in enumerate(vocabulary)}
    present = np.zeros((len(captions), len(vocabulary)), dtype=np.bool_)
    for row, found in enumerate(per_image):
        present[row, [column[word] for word in found if word in column]] = True
    return vocabulary, present


class CaptionPmi:
    """The first describer: the baseline that later ones must beat."""

    name = "caption-pmi"
    version = 1

    def __init__(self, config: DescribeConfig) -> None:
        self._config = config

    def describe(self, bundle: Bundle, features: Iterable[int]) -> Iterator[Description]:
        """Descriptions of ``features`` in order."""
        captions = tuple(" ".join((r.caption, *r.tags)) for r in bundle.images)
        vocabulary, present = _vocabulary(captions)
        everywhere = present.sum(axis=0)
        for feature in features:
            top, _ = bundle.exemplars(feature)
            yield self._describe(
                feature,
                vocabulary,
                present[[e.image for e in top]],
                everywhere,
                len(captions),
                tuple(e.patch for e in top),
            )

    def _describe(
        self,
        feature: int,
        vocabulary: list[str],
        in_exemplars: NDArray[np.bool_],
        everywhere: NDArray[np.int64],
        images: int,
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
            return description(None, f"fires in {drawn} images, fewer than {_FEWEST_IMAGES}")
        hits = in_exemplars.sum(axis=0)
        seen = np.flatnonzero(hits)
        if len(seen) == 0:
            return description(None, "none of its exemplars has a caption")
        p = np.ones(len(vocabulary))
        p[seen] = hypergeom.sf(hits[seen] - 1, images, everywhere[seen], drawn)
        corrected = false_discovery_control(p)
        share = (hits[seen] + _SMOOTHING) / (drawn + 2 * _SMOOTHING)
        prior = (everywhere[seen] + _SMOOTHING) / (images + 2 * _SMOOTHING)
        pmi = dict(zip(seen.tolist(), np.log(share / prior).tolist(), strict=True))
        significant = [w for w in seen.tolist() if corrected[w] <= self._config.significance]
        if not significant:
            return description(
                None, f"no caption word is significant at {self._config.significance}"
            )
        chosen = sorted(significant, key=lambda w: (corrected[w], -pmi[w]))[: self._config.words]
        value = float(np.mean([pmi[w] for w in chosen]))
        return description(
            ", ".join(vocabulary[w] for w in chosen),
            scores=(Score("caption_pmi", value, drawn),),
            details={
                "words": [
                    {
                        "word": vocabulary[w],
                        "pmi": round(pmi[w], 4),
                        "p_value": float(corrected[w]),
                        "exemplars": int(hits[w]),
                        "images": int(everywhere[w]),
                    }
                    for w in chosen
                ]
            },
        )

"""Prior guesses that a label holds for a picture, made without knowledge of the feature.

Guesses steer the sampling of pictures for raters: bad guesses need more ratings for the same
precision. A guess is also the prior probability against which a rating is weighed. The answers
calibrate the prior.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from vision_sae.activations.store import ImageRecord
from vision_sae.descriptions.describers.caption_pmi import words
from vision_sae.descriptions.matching import matches

Guess = Callable[[str], NDArray[np.float64]]
"""A label -> the probability, in (0, 1), that it holds for each picture (N)."""

UNCAPTIONED = 0.5
"""The guess for a picture without caption and tags."""
_UNSAID, _SAID = 0.2, 0.8
"""The guesses for captions and tags with no word of the label, and with all of them."""


class CaptionGuess:
    """A `Guess` by the words of captions and tags; singular and plural are equal (dog, dogs)."""

    name = "captions"

    def __init__(self, images: Sequence[ImageRecord]) -> None:
        spoken = [words(" ".join((image.caption, *image.tags))) for image in images]
        self._captioned = np.array([bool(each) for each in spoken], dtype=np.bool_)
        self._rows: dict[str, list[int]] = defaultdict(list)
        for row, words_of_picture in enumerate(spoken):
            for word in words_of_picture:
                self._rows[word].append(row)
        self._known: dict[str, NDArray[np.bool_]] = {}

    def __call__(self, label: str) -> NDArray[np.float64]:
        """The guess for each picture; it rises with the share of the label's words in the
        caption."""
        terms = sorted(words(label))
        if not terms:
            return np.full(len(self._captioned), UNCAPTIONED)
        share = np.mean([self._said(word) for word in terms], axis=0)
        return np.where(self._captioned, _UNSAID + (_SAID - _UNSAID) * share, UNCAPTIONED)

    def _said(self, word: str) -> NDArray[np.bool_]:
        """The pictures (N) whose captions have a word, or its singular or plural."""
        if word not in self._known:
            holds = np.zeros(len(self._captioned), dtype=np.bool_)
            for other, rows in self._rows.items():
                # Singular and plural begin with the same letter, even for irregular nouns.
                if other[0] == word[0] and matches(word, other):
                    holds[rows] = True
            self._known[word] = holds
        return self._known[word]

"""Guesses that a label holds for a picture, made by nothing that knows the feature.

A guess decides which pictures raters are asked about: where it is bad, more ratings are needed for
the same precision. It is also what is believed before anybody answers, and one person's word is
weighed against it; how far guesses of about this size can be believed is learnt from the answers.
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
"""The guess for a picture of which nobody said anything."""
_UNSAID, _SAID = 0.2, 0.8
"""The guesses where a caption or its tags have no word of the label, and where they have all."""


class CaptionGuess:
    """A `Guess` by the words of captions and tags, whatever their number (dog, dogs)."""

    name = "captions"

    def __init__(self, images: Sequence[ImageRecord]) -> None:
        said = [words(" ".join((image.caption, *image.tags))) for image in images]
        self._captioned = np.array([bool(found) for found in said], dtype=np.bool_)
        self._rows: dict[str, list[int]] = defaultdict(list)
        for row, found in enumerate(said):
            for word in found:
                self._rows[word].append(row)
        self._known: dict[str, NDArray[np.bool_]] = {}

    def __call__(self, label: str) -> NDArray[np.float64]:
        """The guess for each picture: the more words of the label were said, the higher."""
        wanted = sorted(words(label))
        if not wanted:
            return np.full(len(self._captioned), UNCAPTIONED)
        share = np.mean([self._said(word) for word in wanted], axis=0)
        return np.where(self._captioned, _UNSAID + (_SAID - _UNSAID) * share, UNCAPTIONED)

    def _said(self, word: str) -> NDArray[np.bool_]:
        """The pictures (N) of which a word was said, or its singular or plural."""
        if word not in self._known:
            found = np.zeros(len(self._captioned), dtype=np.bool_)
            for other, rows in self._rows.items():
                # Singulars and plurals begin alike, the irregular ones too.
                if other[0] == word[0] and matches(word, other):
                    found[rows] = True
            self._known[word] = found
        return self._known[word]

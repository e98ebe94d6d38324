"""Painted-on words: where they may lie, and which they are."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from vision_sae.evaluation.painted_words import paint_word, wrong_classes


@pytest.mark.parametrize("word", ["cat", "a very long name of a thing that hardly fits"])
@pytest.mark.parametrize("seed", range(5))
def test_word_is_painted_whole_and_inside(word: str, seed: int) -> None:
    grey = Image.new("RGB", (120, 90), "grey")
    changed = np.asarray(paint_word(grey, word, seed)) != np.asarray(grey)
    rows, columns = np.nonzero(changed.any(2))
    assert len(rows) > 20
    assert columns.max() - columns.min() < 120 * 0.96
    # The black rim is closed: nothing white lies on the border.
    white = (np.asarray(paint_word(grey, word, seed)) == 255).all(2)
    assert not white[[0, -1]].any()
    assert not white[:, [0, -1]].any()


def test_word_is_readable_on_any_background() -> None:
    for background in ("white", "black"):
        painted = np.asarray(paint_word(Image.new("RGB", (96, 96), background), "dog", 0))
        assert (painted == 255).all(2).any()
        assert (painted == 0).all(2).any()


def test_the_picture_itself_is_left_alone() -> None:
    grey = Image.new("RGB", (96, 96), "grey")
    paint_word(grey, "dog", 0)
    assert grey.getcolors() == [(96 * 96, (128, 128, 128))]


def test_same_seed_paints_the_same() -> None:
    grey = Image.new("RGB", (96, 96), "grey")
    first, again, other = (paint_word(grey, "dog", seed).tobytes() for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_words_are_never_the_right_ones_and_all_others_alike() -> None:
    wrong = wrong_classes([2] * 3000, 4, seed=0)
    counts = Counter(wrong)
    assert set(counts) == {0, 1, 3}
    assert all(abs(count - 1000) < 150 for count in counts.values())

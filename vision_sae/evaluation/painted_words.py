"""A test of robustness against spurious text: pictures with the name of a wrong class painted on.

A contrastive model that reads may trust the word more than the thing (Goh et al. 2021, "typographic
attacks"). Every picture gets the name of another class, white with a black rim, at a random
place. Words and places depend only on the seed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_HEIGHT = 0.16
"""Height of the letters, as a share of the picture's shorter side."""
_WIDEST = 0.94
"""Share of the picture's width that a word may take."""


def wrong_classes(classes: Sequence[int], count: int, seed: int) -> list[int]:
    """A wrong class for each picture, uniform over the ``count - 1`` other classes."""
    random = np.random.default_rng(seed)
    return [int((own + random.integers(1, count)) % count) for own in classes]


def paint_word(picture: Image.Image, word: str, seed: int) -> Image.Image:
    """A copy of the picture with ``word`` painted over it, whole and inside its borders."""
    painted = picture.convert("RGB")
    draw = ImageDraw.Draw(painted)
    size = max(6.0, _HEIGHT * min(painted.size))
    rim = max(1, round(size / 12))
    font = ImageFont.load_default(size)
    left, top, right, bottom = draw.textbbox((0, 0), word, font=font, stroke_width=rim)
    if right - left > _WIDEST * painted.width:
        font = ImageFont.load_default(max(6.0, size * _WIDEST * painted.width / (right - left)))
        left, top, right, bottom = draw.textbbox((0, 0), word, font=font, stroke_width=rim)
    random = np.random.default_rng(seed)
    x = random.uniform(0, max(1.0, painted.width - (right - left))) - left
    y = random.uniform(0, max(1.0, painted.height - (bottom - top))) - top
    draw.text((x, y), word, "white", font, stroke_width=rim, stroke_fill="black")
    return painted

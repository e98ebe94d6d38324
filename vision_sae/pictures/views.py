"""More pictures to train on: random crops of those that are there, mirrored half the time.

A dictionary trained on few pictures explains others less well than its own; views of the same
pictures at other places and scales narrow that gap. A view is a picture of its own: its size is
the crop's, and boxes are in its pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from vision_sae.pictures.folder import Picture

_AREA = (0.4, 1.0)
"""Share of the picture's area that a crop keeps, drawn evenly."""
_ASPECT = (3 / 4, 4 / 3)
"""Width over height of a crop, over the picture's own, drawn evenly on a log scale."""


@dataclass(frozen=True)
class View(Picture):
    """A crop of a picture: ``id`` is the picture's with ``#number`` behind it, and the seed."""

    def decode(self) -> Image.Image:
        """Read the file, and crop and perhaps mirror it: always the same for the same id."""
        image = super().decode()
        random = np.random.default_rng(list(self.id.encode()))
        area = random.uniform(*_AREA)
        stretch = np.exp(random.uniform(*np.log(_ASPECT)) / 2)
        width = min(image.width, max(1, round(image.width * area**0.5 * stretch)))
        height = min(image.height, max(1, round(image.height * area**0.5 / stretch)))
        left = int(random.integers(image.width - width + 1))
        top = int(random.integers(image.height - height + 1))
        crop = image.crop((left, top, left + width, top + height))
        return ImageOps.mirror(crop) if random.random() < 0.5 else crop


def with_views(pictures: Sequence[Picture], views: int) -> list[Picture]:
    """Each picture, followed by ``views - 1`` crops of it."""
    return [
        view
        for picture in pictures
        for view in (
            picture,
            *(
                View(
                    f"{picture.id}#{number}",
                    picture.path,
                    picture.caption,
                    picture.tags,
                    picture.source or picture.id,
                )
                for number in range(1, views)
            ),
        )
    ]

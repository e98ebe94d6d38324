"""Data augmentation: random crops of the pictures, mirrored half the time.

A dictionary that is trained on few pictures reconstructs new pictures less well than its training
pictures; crops at other places and scales narrow that gap. A view counts as a separate picture:
its size is the size of the crop, and boxes are in pixels of the crop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from vision_sae.pictures.folder import Picture

_AREA = (0.4, 1.0)
"""Range of a crop's share of the picture's area, drawn uniformly."""
_ASPECT = (3 / 4, 4 / 3)
"""Range of a crop's aspect ratio relative to the picture's, drawn log-uniformly."""


@dataclass(frozen=True)
class View(Picture):
    """A crop of a picture; its ``id`` is the picture's id and ``#number``, and seeds the crop."""

    def decode(self) -> Image.Image:
        """Read the file, crop it and perhaps mirror it; equal ids give equal views."""
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
    """Each picture, followed by ``views - 1`` crops of this picture."""
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

"""A describer of another distribution: the colour that the pictures of a unit have on average."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from pydantic import Field

from vision_sae.descriptions.kinds import DescriberKind, register_describer
from vision_sae.descriptions.protocol import Description
from vision_sae.descriptions.regions import region, thumbnail
from vision_sae.evidence.protocol import Evidence, split
from vision_sae.sections import Section

COLOURS = {
    "black": (0, 0, 0),
    "grey": (128, 128, 128),
    "white": (255, 255, 255),
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
}
"""{name: red, green and blue, from 0 to 255}"""


class MeanColourConfig(Section):
    """Labels by the mean colour."""

    exemplars: int = Field(8, ge=1, le=48)
    """The most exemplars whose colour is averaged."""
    farthest: float = Field(130.0, gt=0)
    """The largest distance of a mean from the colour it is called, in steps of 255."""


class MeanColour:
    """Labels by the colour that the regions of a unit have on average."""

    name = "mean-colour"
    version = 1

    def __init__(self, settings: MeanColourConfig) -> None:
        self._settings = settings

    def describe(self, evidence: Evidence, units: Iterable[int]) -> Iterator[Description]:
        """Descriptions of ``units`` in order."""
        for unit in units:
            yield self._describe(evidence, unit)

    def _describe(self, evidence: Evidence, unit: int) -> Description:
        exemplars = split(evidence, unit).describe[: self._settings.exemplars]
        if not exemplars:
            return Description(unit, None, "it fires in no picture", self.name, self.version)
        means = []
        for firing in exemplars:
            picture = thumbnail(evidence, firing.image)
            pixels = np.asarray(picture, dtype=np.float64)
            means.append(pixels[region(evidence, firing, picture.size)].mean(0))
        mean = np.mean(means, axis=0)
        distances = {name: float(np.linalg.norm(mean - colour)) for name, colour in COLOURS.items()}
        nearest = min(distances, key=distances.__getitem__)
        near = distances[nearest] <= self._settings.farthest
        return Description(
            unit,
            nearest if near else None,
            ""
            if near
            else f"its mean colour is like no colour with a name, least unlike {nearest}",
            self.name,
            self.version,
            evidence=tuple(firing.patch for firing in exemplars),
            details={"mean_colour": [round(float(channel)) for channel in mean]},
        )


KIND = register_describer(
    DescriberKind(
        MeanColour,
        MeanColourConfig,
        lambda tools, evidence, settings: MeanColour(settings),
        scored=False,
    )
)

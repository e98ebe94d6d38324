"""The pictures that a unit's descriptions are scored on.

No two positives, and no two negatives of a kind, come from one source: crops of one photograph are
not independent. No source has both positives and negatives. No picture of any of these sources was
used to describe the unit.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int64
from numpy.typing import NDArray

from vision_sae.descriptions.protocol import Negatives
from vision_sae.evidence.protocol import Evidence, silent, split
from vision_sae.evidence.sources import Sources

_LOOK_ALIKES = 4
"""Look-alikes to request for each hard negative: some come from sources that are taken already."""


class ScoringCase:
    """One unit, with the positive and negative pictures for its descriptions."""

    def __init__(
        self, evidence: Evidence, sources: Sources, unit: int, *, sample: int, seed: int
    ) -> None:
        self._evidence, self._unit = evidence, unit
        self.sources = sources
        """The sources of the pictures."""
        self._sample, self._seed = sample, seed
        describe, score = split(evidence, unit)
        self._described = np.array([f.image for f in describe], dtype=np.int64)
        fired = np.array([f.image for f in score], dtype=np.int64)
        others = sources.none_of(np.concatenate([self._described, fired]))
        self._free = others & sources.for_scoring
        self._drawn: dict[Negatives, NDArray[np.int64]] = {}
        kept = set(sources.first_of_each(fired).tolist())
        self.firings = [f for f in score if f.image in kept][:sample]
        """The firings that the unit's descriptions are scored on, strongest first."""
        self.positives = np.array([f.image for f in self.firings], dtype=np.int64)
        """The pictures of `firings`."""

    @property
    def peaks(self) -> Float[np.ndarray, N]:
        """The unit's strongest activation in each picture of the data set."""
        return self._evidence.peaks(self._unit)

    def random(self, purpose: int) -> np.random.Generator:
        """A generator that is seeded by the unit, the seed and a purpose."""
        return np.random.default_rng([self._seed, self._unit, purpose])

    def negatives(self, kind: Negatives) -> Int64[np.ndarray, m]:
        """Silent pictures: a ``random`` draw, or ``hard`` negatives, the most similar first."""
        if kind not in self._drawn:
            if kind == "hard":
                wanted = _LOOK_ALIKES * self._sample
                pictures = self._evidence.look_alikes(self._unit, wanted)
                pictures = pictures[self._free[pictures]]
            else:
                pictures = np.flatnonzero(silent(self._evidence, self._unit) & self._free)
                pictures = self.random(0).permutation(pictures)
            self._drawn[kind] = self.sources.first_of_each(pictures)[: self._sample]
        return self._drawn[kind]

    @property
    def undescribed(self) -> Int64[np.ndarray, m]:
        """All pictures that no describer of the unit can have seen."""
        unseen = self.sources.for_scoring | ~silent(self._evidence, self._unit)
        return np.flatnonzero(self.sources.none_of(self._described) & unseen)

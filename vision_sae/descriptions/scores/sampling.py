"""The pictures a unit's descriptions are scored on.

Among the positives, and among the negatives of a kind, no two come from one source: crops of one
photograph are one piece of evidence. No source is on both sides, nor did any describe the unit,
by firing it or by leaving it silent.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vision_sae.descriptions.evidence.protocol import Evidence, silent, split
from vision_sae.descriptions.evidence.sources import Sources
from vision_sae.descriptions.protocol import Negatives

_LOOK_ALIKES = 4
"""Look-alikes asked for, for each one wanted: some are of sources that are taken already."""


class Case:
    """One unit and the pictures for and against what is said of it."""

    def __init__(
        self, evidence: Evidence, sources: Sources, unit: int, *, sample: int, seed: int
    ) -> None:
        self._evidence, self._sources, self._unit = evidence, sources, unit
        self._sample, self._seed = sample, seed
        describe, score = split(evidence, unit)
        self._described = np.array([f.image for f in describe], dtype=np.int64)
        fired = np.array([f.image for f in score], dtype=np.int64)
        others = sources.none_of(np.concatenate([self._described, fired]))
        self._free = others & sources.for_scoring
        self._drawn: dict[Negatives, NDArray[np.int64]] = {}
        kept = set(sources.first_of_each(fired).tolist())
        self.firings = [f for f in score if f.image in kept][:sample]
        """What the unit's descriptions are scored on, strongest first."""
        self.fired = np.array([f.image for f in self.firings], dtype=np.int64)
        """Their pictures."""

    def random(self, purpose: int) -> np.random.Generator:
        """The same numbers for the same unit and seed, others for each purpose."""
        return np.random.default_rng([self._seed, self._unit, purpose])

    def negatives(self, kind: Negatives) -> NDArray[np.int64]:
        """Silent pictures: drawn at ``random``, or the ``hard`` ones, the nearest first."""
        if kind not in self._drawn:
            if kind == "hard":
                wanted = _LOOK_ALIKES * self._sample
                found = self._evidence.look_alikes(self._unit, wanted)
                found = found[self._free[found]]
            else:
                found = np.flatnonzero(silent(self._evidence, self._unit) & self._free)
                found = self.random(0).permutation(found)
            self._drawn[kind] = self._sources.first_of_each(found)[: self._sample]
        return self._drawn[kind]

    @property
    def undescribed(self) -> NDArray[np.int64]:
        """All pictures but those that a describer of the unit may have looked at."""
        unseen = self._sources.for_scoring | ~silent(self._evidence, self._unit)
        return np.flatnonzero(self._sources.none_of(self._described) & unseen)

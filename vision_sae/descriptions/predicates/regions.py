"""Where a unit fires, picture by picture, and what the patches there look like."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vision_sae.descriptions.evidence.protocol import Evidence
from vision_sae.descriptions.predicates.facts import Facts
from vision_sae.descriptions.predicates.label import Label

_MOST = 256
"""Pictures whose regions are looked at, spread evenly over the ranks beside the strongest."""
_STRONGEST = 64
"""Of these, the strongest that are taken in any case."""


@dataclass(frozen=True)
class Regions:
    """The regions of R pictures that fire a unit, strongest first."""

    pictures: NDArray[np.int64]
    """Numbers of the pictures (R)."""
    strongest_rows: NDArray[np.int64]
    """Row of each one's strongest patch in the data set (R)."""
    looks: NDArray[np.bool_]
    """Which look most of the region's patches have (R, L)."""
    parts: NDArray[np.bool_]
    """Looks of all patches of all regions (T, L), for conjunctions."""
    owner: NDArray[np.int64]
    """The region that each of these patches belongs to (T)."""
    weights: NDArray[np.float64]
    """What each picture counts (R): a source weighs one in all."""

    def have(self, label: Label) -> NDArray[np.bool_]:
        """The regions (R) most of whose patches have all looks of a label."""
        rows = label.rows
        if not rows:
            return np.ones(len(self.pictures), dtype=np.bool_)
        together = self.parts[:, rows].all(axis=1)
        count = len(self.pictures)
        sizes = np.bincount(self.owner, minlength=count)
        return np.asarray(np.bincount(self.owner, together, count) >= 0.5 * np.maximum(sizes, 1))


def regions_of(
    evidence: Evidence, unit: int, facts: Facts, side: NDArray[np.bool_], *, most: int = _MOST
) -> Regions:
    """The regions of pictures on one ``side`` (N), at most ``most``, over the whole range.

    A region is the patches at or above the median of the unit's activations, and the strongest
    patch of the picture in any case.
    """
    rows, values = evidence.places(unit)
    pictures, patches = np.divmod(rows.astype(np.int64), evidence.grid.patches)
    threshold = float(np.median(values)) if len(values) else 0.0
    inside = side[pictures]
    rows, values, pictures, patches = (
        rows[inside],
        values[inside],
        pictures[inside],
        patches[inside],
    )
    _, first = np.unique(pictures, return_index=True)  # places descend: a picture's strongest
    first = np.sort(first)
    if len(first) > most:
        rest = np.linspace(_STRONGEST, len(first) - 1, most - _STRONGEST).round().astype(np.int64)
        first = first[np.unique(np.concatenate([np.arange(_STRONGEST), rest]))]
    slot = np.full(len(evidence.images), -1)
    slot[pictures[first]] = np.arange(len(first))
    strong = np.asarray(values, dtype=np.float64) >= threshold
    strong[first] = True
    kept = strong & (slot[pictures] >= 0)
    owner, parts = slot[pictures[kept]], facts.looks[pictures[kept], patches[kept]]
    sizes = np.bincount(owner, minlength=len(first))
    counts = np.stack([np.bincount(owner, part, len(first)) for part in parts.T], axis=1)
    return Regions(
        pictures[first],
        np.asarray(rows[first], dtype=np.int64),
        counts >= 0.5 * np.maximum(sizes, 1)[:, None],
        parts,
        owner,
        facts.weights[pictures[first]],
    )

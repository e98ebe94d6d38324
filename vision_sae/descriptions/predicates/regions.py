"""The regions of pictures that fire a unit, and the looks of the patches in these regions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64

from vision_sae.descriptions.predicates.facts import Facts
from vision_sae.descriptions.predicates.label import Label
from vision_sae.evidence.protocol import Evidence

_MOST = 256
"""The most pictures of a unit: the strongest pictures, and others evenly spread over the ranks."""
_STRONGEST = 64
"""The number of the strongest pictures that are always taken."""


@dataclass(frozen=True)
class Regions:
    """The regions of R pictures that fire a unit, strongest first."""

    pictures: Int64[np.ndarray, R]
    """The numbers of the pictures."""
    strongest_rows: Int64[np.ndarray, R]
    """The strongest patch of each region, as a row of the data set."""
    looks: Bool[np.ndarray, "R L"]
    """Whether most patches of a region have a look."""
    parts: Bool[np.ndarray, "patches L"]
    """Whether a patch of any region has a look, for conjunctions."""
    owner: Int64[np.ndarray, patches]
    """The region of each of these patches."""
    weights: Float[np.ndarray, R]
    """The weight of each picture; the weights of one source's pictures add up to one."""

    def have(self, label: Label) -> Bool[np.ndarray, R]:
        """The regions in which most patches have all looks of a label."""
        rows = label.rows
        if not rows:
            return np.ones(len(self.pictures), dtype=np.bool_)
        together = self.parts[:, rows].all(axis=1)
        count = len(self.pictures)
        sizes = np.bincount(self.owner, minlength=count)
        return np.asarray(np.bincount(self.owner, together, count) >= 0.5 * np.maximum(sizes, 1))


def regions_of(
    evidence: Evidence,
    unit: int,
    facts: Facts,
    side: Bool[np.ndarray, N],
    *,
    most: int = _MOST,
) -> Regions:
    """At most ``most`` regions of pictures on one ``side``, over the whole range of activations.

    A region is the strongest patch of a picture and all patches at or above the median of the
    unit's activations.
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
    _, first = np.unique(pictures, return_index=True)  # activations descend: the strongest patch
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

"""What units mean in the space of a contrastive model: the mean region that fires each of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vision_sae.arrays import read_array
from vision_sae.descriptions.evidence.protocol import Evidence
from vision_sae.descriptions.probe import Probe
from vision_sae.files import kept, sha256_json
from vision_sae.vectors import normalised

_REGIONS = 8
"""Strongest firings of a unit that are averaged."""


def meanings(evidence: Evidence, probe: Probe, directory: Path) -> NDArray[np.float32]:
    """The meaning of every unit as a unit vector (F, E), zeros for one that never fires.

    The mean over all units is subtracted: what every region has in common says nothing about any.
    They are computed on first use and kept in ``directory``.
    """
    identity = sha256_json([evidence.identity, probe.identity, _REGIONS])

    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.save(file, _compute(evidence, probe), allow_pickle=False)

    return kept(directory / f"meanings-{identity}.npy", read_array, write)


def _compute(evidence: Evidence, probe: Probe) -> NDArray[np.float32]:
    vectors = np.zeros((evidence.width, probe.embeddings.shape[1]), dtype=np.float32)
    for unit in range(evidence.width):
        firings = evidence.firings(unit)[:_REGIONS]
        if firings:
            vectors[unit] = probe.regions(evidence, firings).mean(0)
    fires = vectors.any(1)
    if fires.any():
        vectors[fires] -= vectors[fires].mean(0)
    return normalised(vectors)


def nearest(text: NDArray[np.float32], vectors: NDArray[np.float32]) -> list[tuple[int, float]]:
    """(row, cosine similarity) of the rows (F, E) that are not zero, nearest to a unit vector (E)
    first."""
    cosines = vectors @ text
    order = np.argsort(-cosines, kind="stable")
    alive = np.asarray(vectors.any(1))
    return [(int(row), float(cosines[row])) for row in order if alive[row]]

"""Units as vectors in the space of a contrastive model: the mean region that fires each unit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32

from vision_sae.arrays import read_array
from vision_sae.evidence.probe import Probe
from vision_sae.evidence.protocol import Evidence
from vision_sae.files import read_cached, sha256_json
from vision_sae.vectors import normalised

_REGIONS = 8
"""Strongest firings of a unit that are averaged."""


def meanings(evidence: Evidence, probe: Probe, directory: Path) -> Float32[np.ndarray, "F E"]:
    """The meaning of every unit, of length 1; zeros for a unit that never fires.

    The mean over all units is subtracted, because it says nothing about any single unit. The
    array is computed on first use and kept in ``directory``.
    """
    identity = sha256_json([evidence.identity, probe.identity, _REGIONS])

    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.save(file, _compute(evidence, probe), allow_pickle=False)

    return read_cached(directory / f"meanings-{identity}.npy", read_array, write)


def _compute(evidence: Evidence, probe: Probe) -> Float32[np.ndarray, "F E"]:
    vectors = np.zeros((evidence.width, probe.embeddings.shape[1]), dtype=np.float32)
    for unit in range(evidence.width):
        firings = evidence.firings(unit)[:_REGIONS]
        if firings:
            vectors[unit] = probe.regions(evidence, firings).mean(0)
    fires = vectors.any(1)
    if fires.any():
        vectors[fires] -= vectors[fires].mean(0)
    return normalised(vectors)


def nearest(
    text: Float[np.ndarray, E], vectors: Float[np.ndarray, "F E"]
) -> list[tuple[int, float]]:
    """(row, cosine similarity) of the rows that are not zero, most similar to ``text`` first.

    All vectors have length 1.
    """
    cosines = vectors @ text
    order = np.argsort(-cosines, kind="stable")
    alive = np.asarray(vectors.any(1))
    return [(int(row), float(cosines[row])) for row in order if alive[row]]

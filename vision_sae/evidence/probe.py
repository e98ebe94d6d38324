"""Probes: the vectors of every picture, and of every patch, of a data set by a contrastive model.

A unit's evidence is a mask over the patches of the unit's own model. The contrastive model has
another grid and often another crop. Both grids lie in the same original picture, so the mask is
transferred by overlapping area. `vision_sae.evidence.probe_pass` makes probes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray

from vision_sae.arrays import read_array
from vision_sae.errors import CorruptArtifactError, MismatchError, NotFoundError
from vision_sae.evidence.overlaps import overlaps
from vision_sae.evidence.protocol import Evidence, Firing
from vision_sae.files import (
    MANIFEST,
    published,
    read_json,
    sha256_file,
    sha256_json,
    verify_files,
)
from vision_sae.models.grid import PatchGrid, Preprocessing
from vision_sae.models.protocol import ContrastiveModel
from vision_sae.vectors import normalised

FORMAT = "vision_sae.probe"
VERSION = 2

EMBEDDINGS = "embeddings.npy"
PATCHES = "patches.npy"
WEIGHTS = "weights.npy"
WINDOWS = "windows.npy"


class Probe:
    """A published probe; arrays are mapped read-only. N pictures, P patches each."""

    def __init__(self, path: Path) -> None:
        self.path = published(path)
        if not (self.path / MANIFEST).is_file():
            raise NotFoundError(f"{path} is not a finished probe; make it again", field="probe")
        self.manifest: dict[str, Any] = read_json(self.path / MANIFEST)
        if self.manifest.get("format") != FORMAT or self.manifest.get("version") != VERSION:
            raise CorruptArtifactError(f"{path} is not a {FORMAT} of version {VERSION}")
        self.identity = sha256_file(self.path / MANIFEST)
        self.grid = PatchGrid(**self.manifest["model"]["grid"])
        self.preprocessing = Preprocessing(**self.manifest["model"]["preprocessing"])
        self.embeddings: NDArray[np.float32] = read_array(self.path / EMBEDDINGS)
        """Pictures (N, E), of unit length."""
        self.patches: NDArray[np.float16] = read_array(self.path / PATCHES)
        """Patches of the pictures (N, P, E), not normalised."""
        self.weights: NDArray[np.float16] = read_array(self.path / WEIGHTS)
        """The weight of each patch in a region (N, P)."""
        self.windows: NDArray[np.float16] = read_array(self.path / WINDOWS)
        """Windows at regular places of the pictures (N, R, E); see `probe_pass.windows_of`."""

    def verify(self) -> None:
        """Check every file against the manifest; raises `CorruptArtifactError` with its name."""
        verify_files(self.path, self.manifest["files"])

    def check(self, model: ContrastiveModel, evidence: Evidence) -> None:
        """Raise `MismatchError` unless the probe has this model and the evidence's pictures."""
        if self.manifest["data_sha256"] != evidence.data_sha256:
            raise MismatchError(
                f"{self.path} holds other pictures than those of {evidence.name}; make a probe of "
                "these",
                field="probe",
            )
        if sha256_json(self.manifest["model"]) != sha256_json(model.identity()):
            raise MismatchError(
                f"{self.path} was made with {self.manifest['model']['name']}, not with this "
                f"{model.name}; make it again",
                field="probe",
            )

    def cover(self, evidence: Evidence, firing: Firing) -> Float32[np.ndarray, " P"]:
        """The area of each patch that a firing's mask covers, in pixels of the original picture.

        When the mask lies wholly outside the contrastive model's crop, the patch nearest to the
        centre of the mask counts as covered.
        """
        record, there = evidence.images[firing.image], evidence.geometry(firing.image)
        here = self.preprocessing.geometry(record.width, record.height)
        shared = overlaps(self.grid, here, evidence.grid, there)
        area = shared.vertical @ firing.mask.astype(np.float32) @ shared.horizontal.T
        if not area.any():
            x0, y0, x1, y1 = evidence.grid.boxes(there)[firing.mask.reshape(-1)].mean(0).tolist()
            covered = np.zeros(self.grid.patches, dtype=np.float32)
            covered[self.grid.nearest((x0 + x1) / 2, (y0 + y1) / 2, here)] = 1
            return covered
        return np.asarray(area.reshape(-1))

    def regions(self, evidence: Evidence, firings: Sequence[Firing]) -> Float32[np.ndarray, "n E"]:
        """The masked region of each firing as a vector of unit length."""
        vectors = np.zeros((len(firings), self.patches.shape[2]), dtype=np.float32)
        for vector, firing in zip(vectors, firings, strict=True):
            cover = self.cover(evidence, firing)
            shares = cover * self.weights[firing.image].astype(np.float32)
            if not shares.any():  # the attention weights are 0 in the whole region
                shares = cover
            (chosen,) = np.nonzero(shares)
            vector[:] = shares[chosen] @ self.patches[firing.image][chosen].astype(np.float32)
        return normalised(vectors)

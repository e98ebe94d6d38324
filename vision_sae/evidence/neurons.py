"""Evidence of raw neurons: every unit of some sites of a model, over the pictures of one folder.

`vision_sae.evidence.neuron_pass` collects it.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from vision_sae.activations.store import read_images
from vision_sae.activations.thumbnails import Thumbnails
from vision_sae.artifacts import NEURONS
from vision_sae.errors import NotFoundError
from vision_sae.evidence.arrays import ArrayEvidence
from vision_sae.files import published, sha256_json, verify_files
from vision_sae.models.grid import PatchGrid, Preprocessing
from vision_sae.models.protocol import Model
from vision_sae.pictures.reading import Skipped
from vision_sae.resources import site_resource

FORMAT, VERSION = NEURONS.format, NEURONS.version

IMAGES = "images.jsonl"
EMBEDDINGS = "embeddings.npy"
_PARTS = ("peaks", "images", "maps", "thresholds")


def matching_sites(model: Model, patterns: Sequence[str]) -> list[str]:
    """The sites of ``model`` that match any pattern (``blocks.*.mlp``), in the model's order.

    Raises `NotFoundError` for a pattern that matches no site.
    """
    for pattern in patterns:
        if not fnmatch.filter(model.sites, pattern):
            raise NotFoundError(
                f"no site of {model.name} matches {pattern!r}; sites are named "
                f"{', '.join(list(model.sites)[:4])}, ...",
                field="sites",
            )
    return [s for s in model.sites if any(fnmatch.fnmatchcase(s, p) for p in patterns)]


class Neurons:
    """Published evidence of the units of some sites of one model."""

    def __init__(self, directory: Path) -> None:
        self.path = published(directory)
        self.manifest = NEURONS.manifest(directory)
        verify_files(self.path, self.manifest["files"])
        self.sites: list[str] = self.manifest["sites"]
        self.skipped = [Skipped(**row) for row in self.manifest.get("skipped", [])]
        """The files that could not be read."""

    def evidence(self, site: str) -> ArrayEvidence:
        """The evidence of one site, with mapped arrays; raises `NotFoundError` for another."""
        if site not in self.sites:
            raise NotFoundError(
                f"{self.path} has no site {site!r}; it has {', '.join(self.sites)}", field="site"
            )
        model = self.manifest["model"]
        peaks, images, maps, thresholds = (
            np.load(self.path / site / f"{part}.npy", mmap_mode="r") for part in _PARTS
        )
        return ArrayEvidence(
            name=site_resource(model["name"], site),
            identity=sha256_json([self.manifest["plan"], site]),
            data_sha256=self.manifest["data_sha256"],
            site=site,
            images=read_images(self.path / IMAGES),
            grid=PatchGrid(**model["grid"]),
            preprocessing=Preprocessing(**model["preprocessing"]),
            thumbnails=Thumbnails(self.path),
            embeddings=np.load(self.path / EMBEDDINGS),
            all_peaks=peaks,
            firing_images=images,
            maps=maps,
            thresholds=thresholds,
        )

    def __iter__(self) -> Iterator[ArrayEvidence]:
        """The evidence of every site, in the order of the model."""
        return (self.evidence(site) for site in self.sites)

"""Reading an ActivationStore. FORMAT.md beside this file is normative."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vision_sae.activations.thumbnails import Thumbnails
from vision_sae.errors import CorruptArtifactError, InvalidInputError, NotFoundError
from vision_sae.files import MANIFEST, published, read_json, verify_files
from vision_sae.models.grid import Geometry, PatchGrid, Preprocessing

FORMAT = "vision_sae.activation_store"
VERSION = 1

SHARDS = "shards"
IMAGES = "images.jsonl"
SKIPPED = "skipped.jsonl"
EMBEDDING = "embedding.npy"
ALIGNED = "text_aligned"
"""The array of patches in the space of texts, among those of sites."""
ALIGNED_WEIGHTS = "text_aligned_weights"
"""What each of these patches contributes to a region."""

_MEAN_ROWS = 4096
"""Rows summed at a time."""


class ImageRecord(NamedTuple):
    """One stored image."""

    id: str
    width: int
    """Width of the original picture in pixels."""
    height: int
    """Height of the original picture in pixels."""
    caption: str
    tags: tuple[str, ...]
    """Further words that go with the picture."""
    source: str = ""
    """What it was cut from: see `vision_sae.pictures.folder.Picture.source`."""

    @property
    def origin(self) -> str:
        """What makes it independent evidence: its source, or with none itself."""
        return self.source or self.id

    @property
    def data_set(self) -> str:
        """The uppermost folder that it lay in; empty in none."""
        return self.id.rpartition("/")[0].partition("/")[0]


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All objects of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def read_images(path: Path) -> list[ImageRecord]:
    """The image records of one ``images.jsonl``."""
    return [ImageRecord(**(row | {"tags": tuple(row["tags"])})) for row in read_jsonl(path)]


def write_images(path: Path, images: Iterable[ImageRecord]) -> None:
    """Write one ``images.jsonl``."""
    rows = [json.dumps(image._asdict(), sort_keys=True) + "\n" for image in images]
    path.write_text("".join(rows))


def sources_of(images: Sequence[ImageRecord]) -> NDArray[np.int64]:
    """The number of each picture's source (N), counted in the order in which they come: the same
    for pictures that are not independent."""
    number: dict[str, int] = {}
    found = [number.setdefault(image.origin, len(number)) for image in images]
    return np.array(found, dtype=np.int64)


def to_tensor(array: NDArray[Any], dtype: str) -> Tensor:
    """Stored values (float16, or bfloat16 seen as uint16) -> a tensor of that precision."""
    if dtype == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


class ActivationStore:
    """Site vectors on disk, with where each came from.

    Opening reads the manifest alone; arrays are memory-mapped when asked for.
    """

    def __init__(self, path: Path) -> None:
        self.path = published(path)
        if not (self.path / MANIFEST).is_file():
            raise NotFoundError(
                f"{path} is not a finished ActivationStore; run `vision-sae harvest` (again: it "
                "resumes)",
                field="store",
            )
        self.manifest: dict[str, Any] = read_json(self.path / MANIFEST)
        if self.manifest.get("format") != FORMAT or self.manifest.get("version") != VERSION:
            raise CorruptArtifactError(
                f"{path} has format {self.manifest.get('format')} version "
                f"{self.manifest.get('version')}, this program reads {FORMAT} version {VERSION}; "
                "harvest again"
            )
        self.dtype: str = self.manifest["dtype"]
        self.grid = PatchGrid(**self.manifest["grid"])
        self.preprocessing = Preprocessing(**self.manifest["preprocessing"])
        self.shards = [self.path / SHARDS / shard["name"] for shard in self.manifest["shards"]]

    def verify(self) -> None:
        """Check every file against the manifest; raises `CorruptArtifactError` with its name."""
        verify_files(self.path, self.manifest["files"])

    @property
    def sites(self) -> dict[str, int]:
        """{site: D}"""
        return {name: site["dim"] for name, site in self.manifest["sites"].items()}

    def site(self, name: str | None) -> str:
        """``name``, or the only site of the store when ``name`` is None."""
        if name is None and len(self.sites) == 1:
            return next(iter(self.sites))
        if name not in self.sites:
            raise InvalidInputError(
                f"the store has no site {name!r}; choose one of {', '.join(self.sites)}",
                field="site",
            )
        return name

    @property
    def rows(self) -> int:
        """Number of patches of all images."""
        return int(self.manifest["images"]) * self.grid.patches

    @cached_property
    def images(self) -> list[ImageRecord]:
        """The stored images in row order."""
        return [record for shard in self.shards for record in read_images(shard / IMAGES)]

    @property
    def skipped(self) -> list[dict[str, str]]:
        """The refused files (id, error) of all shards, also of those that hold no image."""
        return [
            row
            for path in sorted(self.path.glob(f"{SHARDS}/*/{SKIPPED}"))
            for row in read_jsonl(path)
        ]

    def geometry(self, image: int) -> Geometry:
        """How image number ``image`` was resized and cropped."""
        record = self.images[image]
        return self.preprocessing.geometry(record.width, record.height)

    @property
    def text_aligned(self) -> bool:
        """Whether `ALIGNED` can be read like a site."""
        return "text_aligned" in self.manifest

    def dim(self, site: str) -> int:
        """D of a site, or of `ALIGNED`."""
        return int(self.manifest["text_aligned"]["dim"]) if site == ALIGNED else self.sites[site]

    def arrays(self, site: str) -> Iterator[Tensor]:
        """Mapped tensors (images, patches, D) of one site, or of `ALIGNED`, shard by shard."""
        for shard in self.shards:
            yield to_tensor(np.load(shard / f"{site}.npy", mmap_mode="c"), self.dtype)

    def batches(self, site: str, batch_size: int) -> Iterator[Tensor]:
        """All patches in row order: float32 tensors (<= batch_size, D)."""
        for array in self.arrays(site):
            yield from (rows.float() for rows in array.flatten(0, 1).split(batch_size))

    def take(self, site: str, rows: NDArray[np.int64]) -> Tensor:
        """The patches with these row numbers, in any order: float32 (len(rows), D)."""
        taken = torch.empty(len(rows), self.dim(site))
        first = 0
        for array in self.arrays(site):
            of_shard = array.flatten(0, 1)
            (here,) = np.nonzero((rows >= first) & (rows < first + len(of_shard)))
            taken[here] = of_shard[rows[here] - first].float()
            first += len(of_shard)
        return taken

    def mean(self, site: str) -> Tensor:
        """The mean site vector of all patches (D), float32, summed in float64."""
        total = torch.zeros(self.sites[site], dtype=torch.float64)
        for vectors in self.batches(site, _MEAN_ROWS):
            total += vectors.sum(0, dtype=torch.float64)
        return (total / self.rows).float()

    @cached_property
    def embeddings(self) -> NDArray[np.float32]:
        """Pooled embeddings (images, E)."""
        parts = [np.load(shard / EMBEDDING) for shard in self.shards]
        return np.concatenate(parts).astype(np.float32)

    def thumbnails(self) -> Iterator[bytes]:
        """The JPEG thumbnails of all images in row order."""
        for shard in self.shards:
            yield from Thumbnails(shard)

"""Reading an ActivationStore. FORMAT.md beside this file is normative."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vision_sae.activations.thumbnails import Thumbnails
from vision_sae.arrays import read_array
from vision_sae.artifacts import STORE, site_of
from vision_sae.errors import CorruptArtifactError, InvalidInputError
from vision_sae.files import published, verify_files
from vision_sae.models.grid import Geometry, PatchGrid, Preprocessing
from vision_sae.pictures.reading import Skipped
from vision_sae.texts import lines_of

FORMAT, VERSION = STORE.format, STORE.version

SHARDS = "shards"
IMAGES = "images.jsonl"
SKIPPED = "skipped.jsonl"
EMBEDDING = "embedding.npy"
ALIGNED = "text_aligned"
"""The array of patches in the space of texts, among those of sites."""
ALIGNED_WEIGHTS = "text_aligned_weights"
"""What each of these patches contributes to a region."""

_ROWS = 4096
"""Rows read at a time where all are."""


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
    """All objects of a JSON-lines file of ours; raises `CorruptArtifactError` for what is none."""
    try:
        return [json.loads(line.text) for line in lines_of(path.read_text("utf-8"))]
    except (FileNotFoundError, ValueError) as error:
        raise CorruptArtifactError(
            f"{path} is missing or damaged ({error}); make the folder that it is in again"
        ) from error


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
    """Stored values (a float type, or bfloat16 seen as uint16) -> a tensor of that precision."""
    if dtype == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


class ActivationStore:
    """Site vectors on disk, with where each came from.

    Opening reads the manifest alone; arrays are memory-mapped when asked for. Whatever reads them
    as float32 checks that they hold numbers: NaN or infinity is an `InvalidInputError` that names
    the first, never a quantity that is computed with.
    """

    def __init__(self, path: Path) -> None:
        self.path = published(path)
        self.manifest = STORE.manifest(path)
        if not self.manifest["images"]:
            raise InvalidInputError(f"{path} holds no pictures; harvest some", field="store")
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
        return site_of(self.sites, name)

    @property
    def rows(self) -> int:
        """Number of patches of all images."""
        return int(self.manifest["images"]) * self.grid.patches

    @cached_property
    def images(self) -> list[ImageRecord]:
        """The stored images in row order."""
        return [record for shard in self.shards for record in read_images(shard / IMAGES)]

    @property
    def skipped(self) -> list[Skipped]:
        """The files of all shards that could not be read, also of those that hold no image."""
        return [
            Skipped(**row)
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
        """Mapped tensors (images, patches, D) of one site, or of `ALIGNED`, shard by shard, as they
        are stored: `checked` makes numbers of them."""
        for shard in self.shards:
            yield to_tensor(read_array(shard / f"{site}.npy", "c"), self.dtype)

    def checked(self, site: str, stored: Tensor) -> Tensor:
        """Some of what `arrays` gave, in any shape, as float32; raises `InvalidInputError` with the
        first row and column of the site that hold no number, if any of these do."""
        vectors = stored.float()
        if not vectors.isfinite().all():
            self._refuse(site)
        return vectors

    def _refuse(self, site: str) -> NoReturn:
        """Name the first value of a site that is no number."""
        first = 0
        for array in self.arrays(site):
            for rows in array.flatten(0, 1).split(_ROWS):
                wrong = (~rows.float().isfinite()).reshape(len(rows), -1).nonzero()
                if len(wrong):
                    row, column = wrong[0].tolist()
                    image, patch = divmod(first + row, self.grid.patches)
                    value = float(rows.reshape(len(rows), -1)[row, column])
                    raise InvalidInputError(
                        f"{self.path}: {site} holds {value} in row {first + row}, column {column} "
                        f"(picture {self.images[image].id}, patch {patch}); harvest again without "
                        "this picture, or with a model of higher precision",
                        field="store",
                    )
                first += len(rows)
        raise AssertionError(f"all of {site} is finite")

    def batches(self, site: str, batch_size: int) -> Iterator[Tensor]:
        """All patches in row order: float32 tensors (<= batch_size, D)."""
        for array in self.arrays(site):
            yield from (self.checked(site, r) for r in array.flatten(0, 1).split(batch_size))

    def check_varies(self, site: str) -> None:
        """Raise `InvalidInputError` when all patches hold the same vector, so that there is no
        variance to explain. Reads no further than the first that differs."""
        batches = self.batches(site, _ROWS)
        first = next(batches)
        if not any((rows != first[0]).any() for rows in chain([first], batches)):
            raise InvalidInputError(
                f"{self.path}: no two of the {self.rows} vectors of {site} differ, so there is no "
                "variance to explain; harvest more pictures",
                field="store",
            )

    def take(self, site: str, rows: NDArray[np.int64]) -> Tensor:
        """The patches with these row numbers, in any order: float32 (len(rows), D)."""
        taken = torch.empty(len(rows), self.dim(site))
        first = 0
        for array in self.arrays(site):
            of_shard = array.flatten(0, 1)
            (here,) = np.nonzero((rows >= first) & (rows < first + len(of_shard)))
            taken[here] = self.checked(site, of_shard[rows[here] - first])
            first += len(of_shard)
        return taken

    def mean(self, site: str) -> Tensor:
        """The mean site vector of all patches (D), float32, summed in float64."""
        total = torch.zeros(self.sites[site], dtype=torch.float64)
        for vectors in self.batches(site, _ROWS):
            total += vectors.sum(0, dtype=torch.float64)
        return (total / self.rows).float()

    @cached_property
    def embeddings(self) -> NDArray[np.float32]:
        """Pooled embeddings (images, E); raises `InvalidInputError` where one is not finite."""
        parts = [read_array(shard / EMBEDDING) for shard in self.shards]
        embeddings: NDArray[np.float32] = np.concatenate(parts).astype(np.float32)
        wrong = np.argwhere(~np.isfinite(embeddings))
        if len(wrong):
            image, column = wrong[0].tolist()
            raise InvalidInputError(
                f"{self.path}: the embedding of picture {self.images[image].id} (row {image}) "
                f"holds {embeddings[image, column]} in column {column}; harvest again without it",
                field="store",
            )
        return embeddings

    def thumbnails(self) -> Iterator[bytes]:
        """The JPEG thumbnails of all images in row order."""
        for shard in self.shards:
            yield from Thumbnails(shard)

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
from jaxtyping import Float, Float32, Int64, Shaped
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
"""The name of the array of patches in the text embedding space, which is read like a site."""
ALIGNED_WEIGHTS = "text_aligned_weights"
"""The name of the array of weights with which these patches contribute to a region."""

_ROWS = 4096
"""Rows that are read at a time when all rows are."""


class ImageRecord(NamedTuple):
    """One stored picture."""

    id: str
    width: int
    """Width of the original picture in pixels."""
    height: int
    """Height of the original picture in pixels."""
    caption: str
    tags: tuple[str, ...]
    """Further words for the picture."""
    source: str = ""
    """The original that the picture was cut from: `vision_sae.pictures.folder.Picture.source`."""

    @property
    def origin(self) -> str:
        """The picture's source, or its id when there is no source. Pictures of different origins
        are independent evidence."""
        return self.source or self.id

    @property
    def data_set(self) -> str:
        """The topmost folder in the picture's id; empty when the id has no folder."""
        return self.id.rpartition("/")[0].partition("/")[0]


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All objects of a JSON-lines file; raises `CorruptArtifactError` for any other file."""
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


def sources_of(images: Sequence[ImageRecord]) -> Int64[np.ndarray, " N"]:
    """The number of each picture's source, in order of first appearance; pictures of one source
    share a number."""
    number: dict[str, int] = {}
    sources = [number.setdefault(image.origin, len(number)) for image in images]
    return np.array(sources, dtype=np.int64)


def to_tensor(array: Shaped[np.ndarray, "*shape"], dtype: str) -> Float[Tensor, "*shape"]:
    """Stored values (a float type, or bfloat16 as uint16) -> a tensor of that precision."""
    if dtype == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


class ActivationStore:
    """Site vectors on disk, with the pictures that they come from.

    Opening a store reads only the manifest; arrays are memory-mapped on use. Methods that return
    float32 raise `InvalidInputError`, with the place of the first such value, for NaN or infinity.
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

    def __repr__(self) -> str:
        sites = ", ".join(f"{name} ({dim})" for name, dim in self.sites.items())
        return f"<ActivationStore {self.path.name}: {self.manifest['images']} images, {sites}>"

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
        """Number of patches of all pictures."""
        return int(self.manifest["images"]) * self.grid.patches

    @cached_property
    def images(self) -> list[ImageRecord]:
        """The stored pictures in row order."""
        return [record for shard in self.shards for record in read_images(shard / IMAGES)]

    @property
    def skipped(self) -> list[Skipped]:
        """The files that could not be read, of all shards, including shards without pictures."""
        return [
            Skipped(**row)
            for path in sorted(self.path.glob(f"{SHARDS}/*/{SKIPPED}"))
            for row in read_jsonl(path)
        ]

    def geometry(self, image: int) -> Geometry:
        """The resizing and cropping of picture number ``image``."""
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
        """Mapped tensors (pictures, patches, D) of one site, or of `ALIGNED`, shard by shard, in
        the stored precision; `checked` converts them."""
        for shard in self.shards:
            yield to_tensor(read_array(shard / f"{site}.npy", "c"), self.dtype)

    def checked(self, site: str, stored: Float[Tensor, "*shape"]) -> Float32[Tensor, "*shape"]:
        """Values from `arrays`, in any shape, as float32. Raises `InvalidInputError` when they
        contain NaN or infinity, with the first such row and column of the site."""
        vectors = stored.float()
        if not vectors.isfinite().all():
            self._refuse(site)
        return vectors

    def _refuse(self, site: str) -> NoReturn:
        """Raise `InvalidInputError` with the first NaN or infinity of a site."""
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
        """All patches in row order, as float32 tensors (at most ``batch_size``, D)."""
        for array in self.arrays(site):
            yield from (self.checked(site, r) for r in array.flatten(0, 1).split(batch_size))

    def check_varies(self, site: str) -> None:
        """Raise `InvalidInputError` when all patches have the same vector, so that there is no
        variance to explain. Reading stops at the first batch with another vector."""
        batches = self.batches(site, _ROWS)
        first = next(batches)
        if not any((rows != first[0]).any() for rows in chain([first], batches)):
            raise InvalidInputError(
                f"{self.path}: no two of the {self.rows} vectors of {site} differ, so there is no "
                "variance to explain; harvest more pictures",
                field="store",
            )

    def take(self, site: str, rows: Int64[np.ndarray, " N"]) -> Float32[Tensor, "N D"]:
        """The vectors of the patches with these row numbers, which may be in any order."""
        taken = torch.empty(len(rows), self.dim(site))
        first = 0
        for array in self.arrays(site):
            of_shard = array.flatten(0, 1)
            (here,) = np.nonzero((rows >= first) & (rows < first + len(of_shard)))
            taken[here] = self.checked(site, of_shard[rows[here] - first])
            first += len(of_shard)
        return taken

    def mean(self, site: str) -> Float32[Tensor, " D"]:
        """The mean site vector of all patches, summed in float64."""
        total = torch.zeros(self.sites[site], dtype=torch.float64)
        for vectors in self.batches(site, _ROWS):
            total += vectors.sum(0, dtype=torch.float64)
        return (total / self.rows).float()

    @cached_property
    def embeddings(self) -> Float32[np.ndarray, "N E"]:
        """Pooled embeddings of the pictures; raises `InvalidInputError` for NaN or infinity."""
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
        """The JPEG thumbnails of all pictures in row order."""
        for shard in self.shards:
            yield from Thumbnails(shard)

"""Reading a Bundle. FORMAT.md beside this file is normative."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from vision_sae.activations.store import ImageRecord, read_images, read_jsonl
from vision_sae.activations.thumbnails import Thumbnails
from vision_sae.artifacts import BUNDLE
from vision_sae.bundles import codes as codes_module
from vision_sae.bundles.codes import SparseRows
from vision_sae.bundles.exemplars import Exemplars
from vision_sae.bundles.patch_index import PatchIndex
from vision_sae.bundles.relations import Matches, Relations
from vision_sae.bundles.statistics import Statistics
from vision_sae.dictionaries.architectures import read_weights
from vision_sae.dictionaries.protocol import Dictionary
from vision_sae.errors import (
    FeatureNotFoundError,
    MismatchError,
)
from vision_sae.files import (
    MANIFEST,
    open_staging,
    publish,
    published,
    sha256_file,
    sha256_json,
    verify_files,
)
from vision_sae.models.grid import Geometry, PatchGrid, Preprocessing
from vision_sae.storage import storing

FORMAT, VERSION = BUNDLE.format, BUNDLE.version

DICTIONARY = "dictionary"
IMAGES = "images.jsonl"
EMBEDDINGS = "embeddings.npy"
SITE_MEAN = "site_mean.npy"
CODES, CODES_COLUMN = "codes", "indices"
POSTINGS, POSTINGS_COLUMN = "postings", "patches"
STATISTICS = "statistics.safetensors"
EXEMPLARS = "exemplars.safetensors"
RELATIONS = "relations.safetensors"
PATCH_INDEX = "patches"
TEXT_ALIGNED_INDEX = "text_aligned"
DESCRIPTIONS = "descriptions.jsonl"
DELETED = "deleted.npy"
MATCHES = "matches"

_PARTS = (
    *("manifest_sha256", "dictionary", "images", "embeddings", "site_mean", "codes", "postings"),
    *("statistics", "_exemplars", "relations", "patch_index", "descriptions", "thumbnails"),
    *("text_aligned_index", "deleted", "matches", "published_at"),
)
"""The properties of `Bundle` that read a file."""


class Exemplar(NamedTuple):
    """One image in which a feature fires."""

    patch: int
    """Row of its strongest patch in the whole data set."""
    image: int
    """Number of the image."""
    activation: float
    mask: NDArray[np.bool_]
    """Patches of the image above the feature's mask threshold (rows, cols)."""


class Bundle:
    """A published bundle. Opening checks every file against the manifest; arrays are mapped.

    It stays what it was at opening when another one is published in its place.
    """

    def __init__(self, path: Path) -> None:
        self.path = published(path)
        self.name = path.name
        self.manifest = BUNDLE.manifest(path)
        verify_files(self.path, self.manifest["files"])
        self.site: str = self.manifest["site"]
        self.grid = PatchGrid(**self.manifest["model"]["grid"])
        self.preprocessing = Preprocessing(**self.manifest["model"]["preprocessing"])
        for part in _PARTS:  # now: the directory may be published anew while this one is in use
            getattr(self, part)

    @cached_property
    def dictionary(self) -> Dictionary:
        """The dictionary itself."""
        return read_weights(self.path / DICTIONARY, self.manifest["dictionary"])

    @cached_property
    def images(self) -> list[ImageRecord]:
        """The images in row order."""
        return read_images(self.path / IMAGES)

    @cached_property
    def image_rows(self) -> dict[str, int]:
        """{identifier of an image: its row}"""
        return {image.id: row for row, image in enumerate(self.images)}

    @cached_property
    def embeddings(self) -> NDArray[np.float32]:
        """Pooled embeddings (images, E)."""
        return np.asarray(np.load(self.path / EMBEDDINGS))

    @cached_property
    def site_mean(self) -> NDArray[np.float32]:
        """Mean site vector of the data set (D)."""
        return np.asarray(np.load(self.path / SITE_MEAN))

    @cached_property
    def codes(self) -> SparseRows:
        """patch -> (features, activations)."""
        return codes_module.load(self.path / CODES, CODES_COLUMN)

    @cached_property
    def postings(self) -> SparseRows:
        """feature -> (patches, activations), strongest first."""
        return codes_module.load(self.path / POSTINGS, POSTINGS_COLUMN)

    @cached_property
    def code_norms(self) -> NDArray[np.float64]:
        """Euclidean norm of the code of every patch."""
        squares = np.square(self.codes.values, dtype=np.float64)
        patches = np.repeat(np.arange(len(self.codes.indptr) - 1), np.diff(self.codes.indptr))
        return np.sqrt(np.bincount(patches, squares, len(self.codes.indptr) - 1))

    @cached_property
    def statistics(self) -> Statistics:
        """Statistics of every feature."""
        return Statistics(**load_file(self.path / STATISTICS))

    @cached_property
    def image_counts(self) -> NDArray[np.int64]:
        """Images in which each feature fires (F)."""
        postings = self.postings
        feature = np.repeat(np.arange(len(postings.indptr) - 1), np.diff(postings.indptr))
        pairs = feature * len(self.images) + postings.indices // self.grid.patches
        return np.bincount(np.unique(pairs) // len(self.images), minlength=len(postings.indptr) - 1)

    @cached_property
    def manifest_sha256(self) -> str:
        """Hex SHA-256 of the manifest's bytes: the identity of the whole bundle."""
        return sha256_file(self.path / MANIFEST)

    @cached_property
    def published_at(self) -> datetime:
        """When it was published, UTC: the time of its manifest, which is written last."""
        return datetime.fromtimestamp((self.path / MANIFEST).stat().st_mtime, UTC)

    @property
    def dictionary_sha256(self) -> str:
        """Hex SHA-256 of what the files of the dictionary hold: the same however the bundle is
        published anew."""
        files: dict[str, Any] = self.manifest["files"]
        kept = {name: entry for name, entry in files.items() if name.startswith(DICTIONARY + "/")}
        return sha256_json([kept, self.manifest["dictionary"]])

    @cached_property
    def relations(self) -> Relations:
        """How features are related."""
        return Relations(**load_file(self.path / RELATIONS))

    @cached_property
    def _exemplars(self) -> Exemplars:
        return Exemplars(**load_file(self.path / EXEMPLARS))

    @cached_property
    def patch_index(self) -> PatchIndex:
        """The mapped index over centred, unit-norm site vectors."""
        return PatchIndex.load(self.path / PATCH_INDEX, self.manifest["patch_index"]["nprobe"])

    @cached_property
    def text_aligned_index(self) -> PatchIndex | None:
        """The mapped index over patches in the space of texts, of unit norm; None where the store
        did not keep them."""
        report = self.manifest.get("text_aligned_index")
        if report is None:
            return None
        return PatchIndex.load(self.path / TEXT_ALIGNED_INDEX, report["nprobe"])

    @cached_property
    def deleted(self) -> NDArray[np.bool_] | None:
        """Which images were deleted (images); None when none was. Their patches have no codes, and
        what the indexes still hold of them is not to be found."""
        path = self.path / DELETED
        return np.asarray(np.load(path)) if path.is_file() else None

    @cached_property
    def findable(self) -> NDArray[np.bool_] | None:
        """Which patches a search may find (patches): those of images that were not deleted. None
        for all."""
        return None if self.deleted is None else np.repeat(~self.deleted, self.grid.patches)

    @cached_property
    def matches(self) -> dict[str, Matches]:
        """{a bundle that this one was matched with: the counterparts of the features there}"""
        return {
            other: Matches(**load_file(self.path / MATCHES / f"{other}.safetensors"))
            for other in self.manifest.get("matches", {})
        }

    @cached_property
    def data_sets(self) -> NDArray[np.str_]:
        """The data set of every image (images)."""
        return np.array([image.data_set for image in self.images])

    @cached_property
    def descriptions(self) -> dict[int, dict[str, Any]]:
        """{feature: description}; empty before `describe`."""
        path = self.path / DESCRIPTIONS
        return {row["feature"]: row for row in read_jsonl(path)} if path.is_file() else {}

    @cached_property
    def thumbnails(self) -> Thumbnails:
        """JPEG thumbnails of the images."""
        return Thumbnails(self.path)

    def check_feature(self, feature: int) -> None:
        """Raise `FeatureNotFoundError` for an index outside the dictionary."""
        width = self.dictionary.width
        if not 0 <= feature < width:
            raise FeatureNotFoundError(
                f"dictionary {self.name} has features 0 to {width - 1}, not {feature}",
                field="feature",
            )

    def activation(self, patch: int, feature: int) -> float:
        """How strongly a feature fires on a patch; 0 where it is silent."""
        features, values = self.codes.row(patch)
        return float(values[features == feature].sum())

    def geometry(self, image: int) -> Geometry:
        """How image number ``image`` was resized and cropped."""
        record = self.images[image]
        return self.preprocessing.geometry(record.width, record.height)

    def box(self, patch: int) -> tuple[float, float, float, float]:
        """The box of a patch (row of the data set) in its original picture's pixels."""
        image, position = divmod(patch, self.grid.patches)
        x0, y0, x1, y1 = self.grid.boxes(self.geometry(image))[position].tolist()
        return x0, y0, x1, y1

    def exemplars(self, feature: int) -> tuple[list[Exemplar], list[Exemplar]]:
        """(strongest, spread over the quantiles), each strongest first."""
        self.check_feature(feature)
        stored, top = self._exemplars, int(self.manifest["build"]["exemplars"])
        bits = np.unpackbits(stored.mask[feature], axis=1, count=self.grid.patches)
        found = [
            Exemplar(
                int(patch),
                int(patch) // self.grid.patches,
                float(stored.activation[feature, slot]),
                bits[slot].reshape(self.grid.rows, self.grid.cols).astype(np.bool_),
            )
            for slot, patch in enumerate(stored.patch[feature])
            if patch >= 0
        ]
        return found[:top], found[top:]


def _share(file: Path, name: Path) -> None:
    """Give ``file`` a second name, or copy it where that cannot be."""
    try:
        os.link(file, name)
    except OSError:
        shutil.copyfile(file, name)


def republish(
    bundle: Bundle,
    path: Path,
    manifest: dict[str, Any],
    files: Mapping[str, bytes] | None = None,
    *,
    write: Callable[[Path], None] | None = None,
) -> Bundle:
    """Publish ``bundle`` anew at ``path`` with changed manifest entries and new or changed files:
    ``files``, and what ``write`` puts in the directory it is given.

    Unchanged files are shared by hard links, or copied where the file system has none. Raises
    `MismatchError`, and changes nothing, when another bundle has been published at ``path`` since
    ``bundle`` was opened.
    """
    with storing(path):
        staging = open_staging(path)
        source = published(path)  # a bundle that a dead writer had set aside is back in its place
        if sha256_file(source / MANIFEST) != bundle.manifest_sha256:
            raise MismatchError(
                f"{path} was published anew while this was at work; run it again", field="bundle"
            )
        if write is not None:
            write(staging)
        for name, data in (files or {}).items():
            (staging / name).write_bytes(data)
        for name in bundle.manifest["files"]:
            if not (staging / name).exists():
                (staging / name).parent.mkdir(exist_ok=True)
                _share(source / name, staging / name)
        publish(path, bundle.manifest | manifest)
    return Bundle(path)


def descriptions_file(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """What a file of descriptions holds."""
    return "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows).encode()


def add_descriptions(
    bundle: Bundle, path: Path, rows: list[dict[str, Any]], manifest: dict[str, Any]
) -> Bundle:
    """Publish the bundle anew with descriptions."""
    return republish(bundle, path, manifest, {DESCRIPTIONS: descriptions_file(rows)})

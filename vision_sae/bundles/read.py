"""Reading a Bundle. FORMAT.md beside this file is normative."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from numpy.typing import NDArray
from safetensors.numpy import load_file
from torch import Tensor

from vision_sae.activations.store import ImageRecord, read_images, read_jsonl
from vision_sae.activations.thumbnails import Thumbnails
from vision_sae.artifacts import BUNDLE
from vision_sae.bundles import codes as codes_module
from vision_sae.bundles import layout
from vision_sae.bundles.codes import SparseRows
from vision_sae.bundles.exemplars import Exemplars
from vision_sae.bundles.patch_index import PatchIndex
from vision_sae.bundles.relations import Matches, Relations
from vision_sae.bundles.statistics import Statistics
from vision_sae.dictionaries.architectures import read_weights
from vision_sae.dictionaries.metrics import explained_share
from vision_sae.dictionaries.protocol import Dictionary, check_feature
from vision_sae.files import MANIFEST, published, sha256_file, sha256_json, verify_files
from vision_sae.models.grid import Geometry, PatchGrid, Preprocessing
from vision_sae.transfers import Placed


class Exemplar(NamedTuple):
    """One picture in which a feature fires."""

    patch: int
    """Row, in the whole data set, of the patch that fires the feature most in this picture."""
    image: int
    """Number of the picture."""
    activation: float
    """The activation on this patch."""
    mask: Bool[np.ndarray, "R C"]
    """Patches of the picture above the feature's mask threshold."""


@dataclass(frozen=True, eq=False, repr=False)
class Bundle:
    """A published bundle, opened by `read_bundle`: large arrays are mapped, the rest is in memory.

    An open bundle does not change, even when another bundle is published in its place.
    """

    path: Path
    """The folder that holds the files."""
    name: str
    manifest: dict[str, Any]
    manifest_sha256: str
    """Hex SHA-256 of the manifest's bytes: the identity of the whole bundle."""
    published_at: datetime
    """The time of publication, UTC: the time of the manifest, which is written last."""
    site: str
    grid: PatchGrid
    preprocessing: Preprocessing
    dictionary: Dictionary
    images: list[ImageRecord]
    """The pictures in row order."""
    thumbnails: Thumbnails
    """JPEG thumbnails of the pictures."""
    embeddings: Float32[np.ndarray, "N E"]
    """Pooled embeddings of the pictures."""
    site_mean: Float32[np.ndarray, " D"]
    """Mean site vector of the data set."""
    codes: SparseRows
    """patch -> (features, activations)"""
    postings: SparseRows
    """feature -> (patches, activations), strongest first"""
    statistics: Statistics
    """Statistics of every feature."""
    relations: Relations
    """Relations between the features."""
    exemplar_slots: Exemplars
    """The exemplars of every feature in their stored form; see `exemplars`."""
    patch_index: PatchIndex
    """The mapped index over centred, unit-norm site vectors."""
    text_aligned_index: PatchIndex | None
    """The mapped index over unit-norm patch vectors in the text embedding space; None when the
    store has none."""
    descriptions: dict[int, dict[str, Any]]
    """{feature: description}; empty before `describe`."""
    matches: dict[str, Matches]
    """{name of a matched bundle: the counterparts of the features in that bundle}"""
    deleted: Bool[np.ndarray, " N"] | None
    """Whether each picture was deleted; None when none was. Deleted pictures have no codes, and
    searches must exclude their vectors, which the indexes still hold."""

    def __repr__(self) -> str:
        return (
            f"<Bundle {self.name}: {self.dictionary.width} features of {self.site} of "
            f"{self.manifest['model']['name']} over {len(self.images)} images>"
        )

    @cached_property
    def image_rows(self) -> dict[str, int]:
        """{identifier of a picture: its row}"""
        return {image.id: row for row, image in enumerate(self.images)}

    @cached_property
    def code_norms(self) -> Float64[np.ndarray, " patches"]:
        """Euclidean norm of the code of every patch."""
        squares = np.square(self.codes.values, dtype=np.float64)
        patches = np.repeat(np.arange(len(self.codes.indptr) - 1), np.diff(self.codes.indptr))
        return np.sqrt(np.bincount(patches, squares, len(self.codes.indptr) - 1))

    @cached_property
    def image_counts(self) -> Int64[np.ndarray, " F"]:
        """Number of pictures in which each feature fires."""
        postings = self.postings
        feature = np.repeat(np.arange(len(postings.indptr) - 1), np.diff(postings.indptr))
        pairs = feature * len(self.images) + postings.indices // self.grid.patches
        return np.bincount(np.unique(pairs) // len(self.images), minlength=len(postings.indptr) - 1)

    @property
    def dictionary_sha256(self) -> str:
        """Hex SHA-256 of the dictionary's files; it does not change when the bundle is published
        again."""
        files: dict[str, Any] = self.manifest["files"]
        kept = {
            name: entry for name, entry in files.items() if name.startswith(layout.DICTIONARY + "/")
        }
        return sha256_json([kept, self.manifest["dictionary"]])

    @cached_property
    def searchable(self) -> Bool[np.ndarray, " patches"] | None:
        """Whether a search may return each patch: its picture was not deleted. None for all."""
        return None if self.deleted is None else np.repeat(~self.deleted, self.grid.patches)

    @cached_property
    def data_sets(self) -> NDArray[np.str_]:
        """The data set of every picture (N)."""
        return np.array([image.data_set for image in self.images])

    def check_feature(self, feature: int) -> None:
        """Raise `FeatureNotFoundError` for an index outside the dictionary."""
        check_feature(feature, self.dictionary.width, f"dictionary {self.name}")

    def activation(self, patch: int, feature: int) -> float:
        """A feature's activation on a patch; 0 where the feature is silent."""
        features, values = self.codes.row(patch)
        return float(values[features == feature].sum())

    @cached_property
    def _placed_mean(self) -> Placed:
        return Placed(torch.from_numpy(self.site_mean))

    def explained_share(
        self, vectors: Float[Tensor, "N D"], reconstructions: Float[Tensor, "N D"]
    ) -> Float[Tensor, ""]:
        """Explained variance of a picture's site vectors, around the mean of the data; a scalar on
        the vectors' device."""
        return explained_share(vectors, reconstructions, self._placed_mean.at(vectors.device))

    def explained_variance(
        self, vectors: Float[Tensor, "N D"], reconstructions: Float[Tensor, "N D"]
    ) -> float:
        """`explained_share` as a number."""
        return float(self.explained_share(vectors, reconstructions))

    def is_unusual(self, explained: float) -> bool:
        """Whether the dictionary explains a picture worse than 99 % of the data."""
        return explained < float(self.manifest["usual_explained_variance"])

    def geometry(self, image: int) -> Geometry:
        """The resizing and cropping of picture number ``image``."""
        record = self.images[image]
        return self.preprocessing.geometry(record.width, record.height)

    def box(self, patch: int) -> tuple[float, float, float, float]:
        """The box (left, top, right, bottom) of a patch, a row of the data set, in pixels of the
        original picture."""
        image, position = divmod(patch, self.grid.patches)
        x0, y0, x1, y1 = self.grid.boxes(self.geometry(image))[position].tolist()
        return x0, y0, x1, y1

    def exemplars(self, feature: int) -> tuple[list[Exemplar], list[Exemplar]]:
        """(strongest exemplars, exemplars across the quantiles), each strongest first.

        Raises `FeatureNotFoundError` for an index outside the dictionary.
        """
        self.check_feature(feature)
        stored, top = self.exemplar_slots, int(self.manifest["build"]["exemplars"])
        bits = np.unpackbits(stored.mask[feature], axis=1, count=self.grid.patches)
        exemplars = [
            Exemplar(
                int(patch),
                int(patch) // self.grid.patches,
                float(stored.activation[feature, slot]),
                bits[slot].reshape(self.grid.rows, self.grid.cols).astype(np.bool_),
            )
            for slot, patch in enumerate(stored.patch[feature])
            if patch >= 0
        ]
        return exemplars[:top], exemplars[top:]


def read_bundle(path: Path, *, verify: bool = True) -> Bundle:
    """Open the bundle that is published at ``path``.

    Every file is checked against the manifest; ``verify=False`` is for a bundle whose files this
    process has just hashed. Raises `NotFoundError` when nothing is published at ``path``, and
    `CorruptArtifactError`, with the file's name, for a file that is missing or changed.
    """
    folder, manifest = published(path), BUNDLE.manifest(path)
    if verify:
        verify_files(folder, manifest["files"])
    aligned = manifest.get("text_aligned_index")
    descriptions, deleted = folder / layout.DESCRIPTIONS, folder / layout.DELETED
    return Bundle(
        path=folder,
        name=path.name,
        manifest=manifest,
        manifest_sha256=sha256_file(folder / MANIFEST),
        published_at=datetime.fromtimestamp((folder / MANIFEST).stat().st_mtime, UTC),
        site=manifest["site"],
        grid=PatchGrid(**manifest["model"]["grid"]),
        preprocessing=Preprocessing(**manifest["model"]["preprocessing"]),
        dictionary=read_weights(folder / layout.DICTIONARY, manifest["dictionary"]),
        images=read_images(folder / layout.IMAGES),
        thumbnails=Thumbnails(folder),
        embeddings=np.asarray(np.load(folder / layout.EMBEDDINGS)),
        site_mean=np.asarray(np.load(folder / layout.SITE_MEAN)),
        codes=codes_module.load(folder / layout.CODES, layout.CODES_COLUMN),
        postings=codes_module.load(folder / layout.POSTINGS, layout.POSTINGS_COLUMN),
        statistics=Statistics(**load_file(folder / layout.STATISTICS)),
        relations=Relations(**load_file(folder / layout.RELATIONS)),
        exemplar_slots=Exemplars(**load_file(folder / layout.EXEMPLARS)),
        patch_index=PatchIndex.load(folder / layout.PATCH_INDEX, manifest["patch_index"]["nprobe"]),
        text_aligned_index=PatchIndex.load(folder / layout.TEXT_ALIGNED_INDEX, aligned["nprobe"])
        if aligned
        else None,
        descriptions={row["feature"]: row for row in read_jsonl(descriptions)}
        if descriptions.is_file()
        else {},
        matches={
            other: Matches(**load_file(folder / layout.MATCHES / f"{other}.safetensors"))
            for other in manifest.get("matches", {})
        },
        deleted=np.asarray(np.load(deleted)) if deleted.is_file() else None,
    )

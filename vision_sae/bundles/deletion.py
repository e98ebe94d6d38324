"""Deletion of pictures from a published bundle.

The thumbnails, embeddings, captions, names and codes of the deleted pictures are removed, and all
statistics, exemplars and relations are computed again without them. The indexes still hold their
vectors; `Bundle.deleted` excludes these from searches until the bundle is rebuilt without the
pictures. Labels and metrics stay as they are.
"""

from __future__ import annotations

import io
from collections.abc import Collection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vision_sae.activations.store import ImageRecord, write_images
from vision_sae.activations.thumbnails import write_thumbnails
from vision_sae.bundles import layout
from vision_sae.bundles.build import write_measured
from vision_sae.bundles.codes import SparseRows
from vision_sae.bundles.publish import republish
from vision_sae.bundles.read import Bundle, read_bundle
from vision_sae.config import BuildConfig
from vision_sae.errors import InvalidInputError, NotFoundError

_GREY = (128, 128, 128)


def delete_images(path: Path, images: Collection[str]) -> Bundle:
    """Publish the bundle at ``path`` again without the pictures of these identifiers.

    Raises `NotFoundError` for a picture that is not in the bundle, and `InvalidInputError` when no
    picture would be left; nothing is changed then.
    """
    bundle = read_bundle(path)
    unknown = sorted(set(images).difference(bundle.image_rows))
    if unknown:
        raise NotFoundError(f"{path} has no picture {unknown[0]!r}", field="image")
    before = bundle.deleted if bundle.deleted is not None else np.zeros(len(bundle.images), bool)
    deleted = before.copy()
    deleted[[bundle.image_rows[image] for image in images]] = True
    if deleted.all():
        raise InvalidInputError(
            "no picture would be left; remove the bundle's directory instead", field="image"
        )
    records = [
        _nameless(row, record) if gone else record
        for row, (record, gone) in enumerate(zip(bundle.images, deleted, strict=True))
    ]
    thumbnails = (
        _grey(data) if gone else data for data, gone in zip(bundle.thumbnails, deleted, strict=True)
    )

    def write(staging: Path) -> None:
        codes = _without(bundle.codes, np.repeat(deleted, bundle.grid.patches))
        config = BuildConfig(**bundle.manifest["build"])
        write_measured(staging, codes, bundle.dictionary, records, bundle.grid, config)
        write_images(staging / layout.IMAGES, records)
        write_thumbnails(staging, thumbnails)
        embeddings = np.where(deleted[:, None], 0, bundle.embeddings).astype(np.float32)
        np.save(staging / layout.EMBEDDINGS, embeddings, allow_pickle=False)
        np.save(staging / layout.DELETED, deleted, allow_pickle=False)

    return republish(bundle, path, {"deleted": int(deleted.sum())}, write=write)


def _without(codes: SparseRows, gone: NDArray[np.bool_]) -> SparseRows:
    """The codes with every feature silent in the deleted rows."""
    counts = np.diff(codes.indptr)
    kept = np.repeat(~gone, counts)
    indptr = np.concatenate([[0], np.cumsum(np.where(gone, 0, counts))]).astype(np.int64)
    return SparseRows(indptr, codes.indices[kept], codes.values[kept])


def _nameless(row: int, record: ImageRecord) -> ImageRecord:
    return ImageRecord(f"deleted-{row:06d}", record.width, record.height, "", ())


def _grey(thumbnail: bytes) -> bytes:
    """A grey picture of the size of a thumbnail."""
    with Image.open(io.BytesIO(thumbnail)) as picture:
        size = picture.size
    data = io.BytesIO()
    Image.new("RGB", size, _GREY).save(data, "JPEG")
    return data.getvalue()

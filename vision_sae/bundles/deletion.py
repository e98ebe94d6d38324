"""Taking pictures out of a published bundle.

What was measured on them goes: their codes, and with them every statistic, exemplar and relation;
their thumbnails, embeddings, captions and names. The indexes still hold their vectors, which
`Bundle.deleted` keeps from being found until the bundle is built anew without the pictures. Labels
stay as they were written, and metrics as they were measured.
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
from vision_sae.bundles import bundle as layout
from vision_sae.bundles.build import write_measured
from vision_sae.bundles.bundle import Bundle, republish
from vision_sae.bundles.codes import SparseRows
from vision_sae.config import BuildConfig
from vision_sae.errors import InvalidInputError, NotFoundError

_GREY = (128, 128, 128)


def delete_images(path: Path, images: Collection[str]) -> Bundle:
    """Publish the bundle at ``path`` anew without the pictures of these identifiers.

    Raises `NotFoundError` for a picture that is not in it, and `InvalidInputError` when none would
    be left; nothing is changed then.
    """
    bundle = Bundle(path)
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
    """Codes in which nothing fires in the rows that are gone."""
    counts = np.diff(codes.indptr)
    kept = np.repeat(~gone, counts)
    indptr = np.concatenate([[0], np.cumsum(np.where(gone, 0, counts))]).astype(np.int64)
    return SparseRows(indptr, codes.indices[kept], codes.values[kept])


def _nameless(row: int, record: ImageRecord) -> ImageRecord:
    return ImageRecord(f"deleted-{row:06d}", record.width, record.height, "", ())


def _grey(thumbnail: bytes) -> bytes:
    """A plain picture of the size of a thumbnail."""
    with Image.open(io.BytesIO(thumbnail)) as picture:
        size = picture.size
    data = io.BytesIO()
    Image.new("RGB", size, _GREY).save(data, "JPEG")
    return data.getvalue()

"""A folder of pictures, with captions from a sidecar where there is one (`pictures.captions`)."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path

from PIL import Image

from vision_sae.errors import (
    ImageTooLargeError,
    InvalidImageError,
    InvalidInputError,
    NotFoundError,
)
from vision_sae.files import sha256_file
from vision_sae.pictures.captions import (
    CAPTIONS_CSV,
    CAPTIONS_JSONL,
    CaptionRecord,
    captions_of,
    read_sidecar,
)
from vision_sae.pictures.decode import MAX_BYTES, decode_image
from vision_sae.pictures.reading import Reading
from vision_sae.pictures.tree import picture_files


@dataclass(frozen=True)
class Picture:
    """One file of a folder."""

    id: str
    """Path relative to the folder, with forward slashes."""
    path: Path
    caption: str = ""
    tags: tuple[str, ...] = ()
    """Further words for the picture, for example its category."""
    source: str = ""
    """The original that the picture was cut from, for example a photograph with several crops;
    empty when no other picture shares the original. Pictures of one source are not independent
    evidence."""

    def content_sha256(self) -> str:
        """Hex SHA-256 of the file; ``unreadable`` when the file cannot be read."""
        try:
            return sha256_file(self.path)
        except OSError:
            return "unreadable"

    def decode(self) -> Image.Image:
        """Read and decode the file to RGB; raises `InvalidInputError` or ``OSError``, which do not
        name the file."""
        size = self.path.stat().st_size
        if size > MAX_BYTES:  # checked before the bytes are read
            raise ImageTooLargeError(f"the file has {size} bytes, the limit is {MAX_BYTES}")
        return decode_image(self.path.read_bytes())

    def load(self) -> Image.Image:
        """Read and decode the file to RGB; raises `InvalidInputError`, which names the file."""
        try:
            return self.decode()
        except InvalidInputError as error:
            raise type(error)(f"{self.path}: {error}", field=error.field) from error
        except OSError as error:
            raise InvalidImageError(
                f"{self.path} cannot be read ({error.strerror})", field="images"
            ) from error


def image_folder(folder: Path, reading: Reading | None = None) -> list[Picture]:
    """Every picture below ``folder``, sorted by id. Files are not opened yet.

    Skipped files and unmatched captions are entered in ``reading``, or raise warnings when it is
    None. Raises `NotFoundError` when there is no picture, and `InvalidInputError` for captions that
    cannot be read.
    """
    if not folder.is_dir():
        raise NotFoundError(
            f"{folder} is not a directory; give a folder of pictures", field="images"
        )
    account = Reading() if reading is None else reading
    files, skipped = picture_files(folder, besides=(CAPTIONS_JSONL, CAPTIONS_CSV))
    account.leave_out(skipped)
    if not files:
        details = "".join(f"; {line}" for line in account.details()[:3])
        raise NotFoundError(f"{folder} holds no .jpg, .png or .webp file{details}", field="images")
    ids = [path.relative_to(folder).as_posix() for path in files]
    sidecar = read_sidecar(folder)
    captions, remarks = captions_of(sidecar, ids)
    account.remark(sidecar.remarks + remarks)
    if reading is None:
        for line in account.details():
            warnings.warn(f"{folder}: {line}", stacklevel=2)
    return [
        Picture(id, path, *captions.get(id, CaptionRecord()))
        for id, path in zip(ids, files, strict=True)
    ]


def data_sha256(pictures: Sequence[Picture]) -> str:
    """Hex SHA-256 of the contents, captions, tags and sources of the pictures, in their order."""
    digest = hashlib.sha256()
    for _, views in groupby(pictures, lambda picture: picture.path):
        first = next(views)
        content = first.content_sha256()
        for view in chain([first], views):
            record = [view.id, view.caption, view.tags, view.source, content]
            digest.update(json.dumps(record).encode())
    return digest.hexdigest()

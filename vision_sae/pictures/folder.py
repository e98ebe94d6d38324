"""A folder of pictures, with captions from a sidecar where there is one.

The sidecar is ``captions.jsonl`` (objects with ``file``, ``caption`` and optionally a list of
``tags`` and a ``source``) or ``captions.csv`` (columns ``file`` and ``caption``) in the folder
itself; ``file`` is relative to the folder.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL import Image

from vision_sae.errors import InvalidInputError, NotFoundError
from vision_sae.files import sha256_file
from vision_sae.pictures.decode import decode_image

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
CAPTIONS_JSONL = "captions.jsonl"
CAPTIONS_CSV = "captions.csv"


@dataclass(frozen=True)
class Picture:
    """One file of a folder."""

    id: str
    """Path relative to the folder, with forward slashes."""
    path: Path
    caption: str = ""
    tags: tuple[str, ...] = ()
    """Further words that go with the picture, for example its category."""
    source: str = ""
    """What it was cut from, for example a photograph with several crops; empty: from nothing that
    another picture was. Pictures of one source are not independent evidence."""

    def load(self) -> Image.Image:
        """Read and decode the file to RGB; raises `InvalidInputError` or ``OSError``."""
        return decode_image(self.path.read_bytes())


def _entry(row: dict[str, Any]) -> tuple[str, tuple[str, tuple[str, ...], str]]:
    """(file, (caption, tags, source)) of one row of a sidecar; raises for what is not text."""
    file, caption = row["file"], row["caption"]
    tags, source = row.get("tags", []), row.get("source", "")
    texts = (file, caption, source, *tags)
    if not isinstance(tags, list) or not all(isinstance(text, str) for text in texts):
        raise TypeError(f"not text: {row}")
    return file, (caption, tuple(tags), source)


def _captions(folder: Path) -> dict[str, tuple[str, tuple[str, ...], str]]:
    """{file: (caption, tags, source)}"""
    jsonl, table = folder / CAPTIONS_JSONL, folder / CAPTIONS_CSV
    try:
        if jsonl.is_file():
            text = jsonl.read_text(encoding="utf-8-sig")
            return dict(_entry(json.loads(line)) for line in text.splitlines() if line.strip())
        if table.is_file():  # "-sig": spreadsheets begin their UTF-8 with a byte order mark
            with table.open(newline="", encoding="utf-8-sig") as file:
                rows = csv.DictReader(file)
                return dict(_entry({k: row[k] for k in ("file", "caption")}) for row in rows)
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise InvalidInputError(
            f"the captions beside {folder} cannot be read ({error!r}); every line needs "
            "`file` and `caption`",
            field="images",
        ) from error
    return {}


def image_folder(folder: Path) -> list[Picture]:
    """Every picture below ``folder``, sorted by id. Files are not opened yet.

    Raises `NotFoundError` when there is none.
    """
    if not folder.is_dir():
        raise NotFoundError(
            f"{folder} is not a directory; give a folder of pictures", field="images"
        )
    captions = _captions(folder)
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not files:
        raise NotFoundError(f"{folder} holds no .jpg, .png or .webp file", field="images")
    ids = [path.relative_to(folder).as_posix() for path in files]
    return [Picture(id, path, *captions.get(id, ())) for id, path in zip(ids, files, strict=True)]


def data_sha256(pictures: Sequence[Picture]) -> str:
    """Hex SHA-256 of what the pictures show and of what is said of them, in their order."""
    digest = hashlib.sha256()
    for path, views in groupby(pictures, lambda picture: picture.path):
        try:
            content = sha256_file(path)
        except OSError:
            content = "unreadable"
        for view in views:
            said = [view.id, view.caption, view.tags, view.source]
            digest.update(json.dumps([*said, content]).encode())
    return digest.hexdigest()

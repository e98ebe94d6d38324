"""Publishing a bundle again with added or changed files, such as descriptions."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from vision_sae.bundles.layout import DESCRIPTIONS
from vision_sae.bundles.read import Bundle, read_bundle
from vision_sae.errors import MismatchError
from vision_sae.files import MANIFEST, open_staging, publish, published, sha256_file
from vision_sae.storage import storing


def _share(file: Path, name: Path) -> bool:
    """Link ``name`` to ``file``, or copy the file where links are impossible; returns whether it is
    linked."""
    name.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file, name)
    except OSError:
        shutil.copyfile(file, name)
        return False
    return True


def republish(
    bundle: Bundle,
    path: Path,
    manifest: dict[str, Any],
    files: Mapping[str, bytes] | None = None,
    *,
    write: Callable[[Path], None] | None = None,
) -> Bundle:
    """Publish ``bundle`` again at ``path`` with changed manifest entries and new or changed files:
    those of ``files``, and those that ``write`` puts in the staging directory.

    Unchanged files are shared by hard links and not hashed again; they are copied on file systems
    without links. Raises `MismatchError`, and changes nothing, when another bundle has been
    published at ``path`` since ``bundle`` was opened.
    """
    with storing(path):
        staging = open_staging(path)
        source = published(path)  # `open_staging` has restored a bundle that was set aside
        if sha256_file(source / MANIFEST) != bundle.manifest_sha256:
            raise MismatchError(
                f"{path} was published anew while this was at work; run it again", field="bundle"
            )
        if write is not None:
            write(staging)
        for name, data in (files or {}).items():
            (staging / name).write_bytes(data)
        shared = {
            name: entry
            for name, entry in bundle.manifest["files"].items()
            if not (staging / name).exists() and _share(source / name, staging / name)
        }
        publish(path, bundle.manifest | manifest, known=shared)
    return read_bundle(path, verify=False)


def descriptions_file(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """The content of a file of descriptions: JSON lines."""
    return "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows).encode()


def add_descriptions(
    bundle: Bundle, path: Path, rows: list[dict[str, Any]], manifest: dict[str, Any]
) -> Bundle:
    """Publish the bundle again with descriptions."""
    return republish(bundle, path, manifest, {DESCRIPTIONS: descriptions_file(rows)})

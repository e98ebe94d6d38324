"""Files that survive: atomic publication, checksums and small JSON.

A published directory is written beside its place, flushed, given its manifest last and renamed.
Readers see all of it or none, whatever instant the writer dies at.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vision_sae.errors import CorruptArtifactError

MANIFEST = "manifest.json"


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Hex SHA-256 of a JSON value in canonical form (sorted keys, no spaces)."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def fsync(path: Path) -> None:
    """Flush a file, or a directory's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _alive(suffix: str) -> bool:
    """Whether the process of a temporary file's suffix (``.4242``) still runs, or may do so."""
    try:
        os.kill(int(suffix[1:]), 0)
    except ProcessLookupError:
        return False
    except (ValueError, OSError):
        return True  # not a name of ours, or a process of another user
    return True


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; on success it replaces ``path`` atomically."""
    temporary = path.with_name(f".{path.name}.{threading.get_ident()}.{os.getpid()}.tmp")
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        if not _alive(left.suffixes[-2]):
            left.unlink(missing_ok=True)
    try:
        yield temporary
        fsync(temporary)
        os.replace(temporary, path)
        fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically: a reader finds the old text or the new, never a part."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; a file that does not parse is named in the error."""
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CorruptArtifactError(
            f"{path} is not valid JSON ({error}); delete the directory and build it again"
        ) from error


def file_table(directory: Path) -> dict[str, dict[str, Any]]:
    """``{relative path: {bytes, sha256}}`` of every file below ``directory`` but the manifest."""
    files = sorted(p for p in directory.rglob("*") if p.is_file() and p.name != MANIFEST)
    return {
        p.relative_to(directory).as_posix(): {"bytes": p.stat().st_size, "sha256": sha256_file(p)}
        for p in files
    }


def verify_files(directory: Path, table: dict[str, dict[str, Any]]) -> None:
    """Refuse, by name, any file of ``table`` that is missing or changed."""
    for name, expected in table.items():
        path = directory / name
        if not path.is_file():
            raise CorruptArtifactError(f"{path} is missing but the manifest names it; build again")
        if path.stat().st_size != expected["bytes"] or sha256_file(path) != expected["sha256"]:
            raise CorruptArtifactError(
                f"{path} does not have the SHA-256 its manifest names; build again"
            )


def _staging(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}.staging")


def _set_aside(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}.old")


def open_staging(directory: Path, *, resume: bool = False) -> Path:
    """The directory in which a publication of ``directory`` is written.

    What a dead writer left there is swept away, or kept with ``resume``.
    """
    staging, old = _staging(directory), _set_aside(directory)
    if old.exists() and not directory.exists():
        os.rename(old, directory)  # the last writer died between its two renames
    shutil.rmtree(old, ignore_errors=True)
    if not resume:
        shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True, exist_ok=True)
    for half_written in staging.glob(".*.tmp"):  # `replacing`, when its process was killed
        half_written.unlink()
    return staging


def publish(directory: Path, manifest: dict[str, Any]) -> None:
    """Publish what stands in the staging directory: flush, manifest last, rename.

    ``manifest`` is completed with the table of ``files``. An earlier publication is moved aside
    before and deleted after.
    """
    staging, old = _staging(directory), _set_aside(directory)
    for path in staging.rglob("*"):
        fsync(path)
    write_json(staging / MANIFEST, manifest | {"files": file_table(staging)})
    fsync(staging)
    if directory.exists():
        os.rename(directory, old)
    os.rename(staging, directory)
    fsync(directory.parent)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def publishing(directory: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Write a directory and publish it when the body succeeds.

    Yields (staging directory, manifest to fill).
    """
    manifest: dict[str, Any] = {}
    yield open_staging(directory), manifest
    publish(directory, manifest)


def published(directory: Path) -> Path:
    """Where the last publication of ``directory`` is readable.

    It is ``directory`` itself, or the copy set aside by a writer that died between its renames.
    """
    old = _set_aside(directory)
    if not (directory / MANIFEST).is_file() and (old / MANIFEST).is_file():
        return old
    return directory

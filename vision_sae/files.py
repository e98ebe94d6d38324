"""Crash-safe files: atomic publication of directories, checksums and small JSON files.

A directory is written to a staging directory beside its final place, flushed, given its manifest
last, and renamed. Readers see the whole directory or nothing, even if the writer dies half way.
"""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from vision_sae.errors import AlreadyExistsError, CorruptArtifactError
from vision_sae.places import MANIFEST as MANIFEST
from vision_sae.places import (
    SYSTEM_FILES,
    UNFINISHED,
    check_beside,
    manifest_of,
    publication_at,
    real,
    set_aside_of,
    staging_of,
)
from vision_sae.storage import storing

T = TypeVar("T")
_LOG = logging.getLogger(__name__)


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
    """Whether the process that a temporary file's suffix names (``.4242``) may still run."""
    try:
        os.kill(int(suffix[1:]), 0)
    except ProcessLookupError:
        return False
    except (ValueError, OSError):
        return True  # the suffix is no number, or the process is another user's
    return True


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; on success it replaces ``path`` atomically.

    The file has the mode that the umask asks for, whatever the library that writes it chooses.
    """
    temporary = path.with_name(f".{path.name}.{threading.get_ident()}.{os.getpid()}.tmp")
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        if not _alive(left.suffixes[-2]):
            left.unlink(missing_ok=True)
    with storing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.touch()
            mode = temporary.stat().st_mode
            yield temporary
            _give_mode(temporary, mode)
            fsync(temporary)
            os.replace(temporary, path)
            fsync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def _give_mode(path: Path, mode: int) -> None:
    """Set the permissions of a file. safetensors, for example, writes files that only their owner
    may read."""
    if stat.S_IMODE(path.stat().st_mode) != stat.S_IMODE(mode):
        with suppress(PermissionError):  # the file is a hard link to another user's bundle
            path.chmod(stat.S_IMODE(mode))


def read_cached(path: Path, read: Callable[[Path], T], write: Callable[[Path], None]) -> T:
    """Read a cached value from the file ``path``.

    A file that is missing, or for which ``read`` raises `CorruptArtifactError`, is written first,
    atomically, by ``write``.
    """
    if path.is_file():
        try:
            return read(path)
        except CorruptArtifactError as error:
            _LOG.warning("%s is rebuilt: %s", path, error)
    with replacing(path) as temporary:
        write(temporary)
    return read(path)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically: a reader finds the old text or the new text, never a part of one."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; raises `CorruptArtifactError`, with the file's name, when it does not parse."""
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CorruptArtifactError(
            f"{path} is not valid JSON ({error}); delete the directory and build it again"
        ) from error


def file_table(
    directory: Path, known: Mapping[str, dict[str, Any]] | None = None
) -> dict[str, dict[str, Any]]:
    """``{relative path: {bytes, sha256}}`` of every file below ``directory`` but the manifest.

    Files with an entry in ``known`` are not read: the table takes that entry.
    """
    unlisted, known = {MANIFEST, UNFINISHED}, known or {}
    files = sorted(p for p in directory.rglob("*") if p.is_file() and p.name not in unlisted)
    names = [path.relative_to(directory).as_posix() for path in files]
    return {
        name: known.get(name) or {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for name, path in zip(names, files, strict=True)
    }


def verify_files(directory: Path, table: dict[str, dict[str, Any]]) -> None:
    """Raise `CorruptArtifactError`, with the file's name, when a file of ``table`` is missing or
    changed."""
    for name, expected in table.items():
        path = directory / name
        if not path.is_file():
            raise CorruptArtifactError(f"{path} is missing but the manifest names it; build again")
        if path.stat().st_size != expected["bytes"] or sha256_file(path) != expected["sha256"]:
            raise CorruptArtifactError(
                f"{path} does not have the SHA-256 its manifest names; build again"
            )


def _delete(directory: Path) -> None:
    """Delete a publication: the files that its manifest names, the empty folders, the manifest.

    No other file is deleted. The manifest goes last, so that a deletion can be resumed.
    """
    if (manifest := manifest_of(directory)) is not None:
        for path in directory.rglob("*"):
            name = path.relative_to(directory).as_posix()
            if name in manifest["files"] or path.name in {UNFINISHED, *SYSTEM_FILES}:
                path.unlink(missing_ok=True)
        for folder in sorted((p for p in directory.rglob("*") if p.is_dir()), reverse=True):
            folder.rmdir()
        (directory / MANIFEST).unlink()
    directory.rmdir()


def _sweep(staging: Path) -> None:
    """Empty a staging directory; the file that marks it as ours is deleted last."""
    for path in staging.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != UNFINISHED:
            path.unlink()
    (staging / UNFINISHED).unlink(missing_ok=True)


def _plan(staging: Path) -> str | None:
    """The plan that a staging directory is written by; None for any other directory."""
    try:
        return (staging / UNFINISHED).read_text()
    except (OSError, UnicodeDecodeError):
        return None


def open_staging(directory: Path, *, plan: str = "") -> Path:
    """Open the staging directory in which a publication of ``directory`` is written.

    ``plan`` is a hash of everything that the output depends on. Files that a dead writer left in
    the staging directory are kept if the plan was the same, and deleted otherwise. Raises
    `AlreadyExistsError` when files that this program did not write are in the way.
    """
    directory = real(directory)
    staging, old = staging_of(directory), set_aside_of(directory)
    check_beside(directory)
    if old.exists() and not directory.exists():
        os.rename(old, directory)  # the last writer died between its two renames
    elif old.exists():
        _delete(old)
    publication_at(directory)  # raises for files of somebody else
    staging.mkdir(parents=True, exist_ok=True)
    if not plan or _plan(staging) != plan:
        _sweep(staging)
        (staging / UNFINISHED).write_text(plan)
    for half_written in staging.rglob(".*.tmp"):  # from `replacing` in a process that was killed
        half_written.unlink()
    return staging


def publish(
    directory: Path,
    manifest: dict[str, Any],
    *,
    known: Mapping[str, dict[str, Any]] | None = None,
) -> None:
    """Publish the staging directory: flush its files, write the manifest last, and rename it.

    The table of ``files`` is added to ``manifest``; files with an entry in ``known`` are not hashed
    again. All files get the permissions of the umask. An earlier publication of the same format is
    moved aside first and deleted last. Raises `AlreadyExistsError` for anything else at
    ``directory``.
    """
    directory = real(directory)
    staging, old = staging_of(directory), set_aside_of(directory)
    mode = (staging / UNFINISHED).stat().st_mode
    for path in staging.rglob("*"):
        if path.is_file():
            _give_mode(path, mode)
        fsync(path)
    write_json(staging / MANIFEST, manifest | {"files": file_table(staging, known)})
    earlier = publication_at(directory)
    if earlier is not None and earlier.get("format") != manifest.get("format"):
        raise AlreadyExistsError(
            f"{directory} is a {earlier.get('format')}, not a {manifest.get('format')}; name a new "
            "folder"
        )
    fsync(staging)
    if directory.exists():
        os.rename(directory, old)
    os.rename(staging, directory)
    (directory / UNFINISHED).unlink()
    fsync(directory.parent)
    if old.exists():
        with suppress(OSError):  # the next writer deletes the rest
            _delete(old)


@contextmanager
def publishing(directory: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Write a directory and publish it when the body succeeds.

    Yields (staging directory, manifest to fill). Callers check the place before they begin to
    work, by `vision_sae.places.check_output`.
    """
    manifest: dict[str, Any] = {}
    with storing(directory):
        yield open_staging(directory), manifest
        publish(directory, manifest)


def published(directory: Path) -> Path:
    """The folder that holds the last publication of ``directory``.

    It is ``directory`` itself, or the copy set aside by a writer that died between its renames.
    """
    old = set_aside_of(directory)
    if not (directory / MANIFEST).is_file() and (old / MANIFEST).is_file():
        return old
    return directory

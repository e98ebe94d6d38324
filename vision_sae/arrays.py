"""Arrays on disk that are written in place.

Disk space for an array is allocated before anything is written. Without that, a mapped file is
sparse, and writing to it on a full disk ends the process by SIGBUS, which Python cannot catch.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import DTypeLike, NDArray

from vision_sae.errors import CorruptArtifactError
from vision_sae.storage import storage_error

Mapped = np.memmap[Any, np.dtype[Any]]
DONE = ".done"
"""Suffix of the file, beside a growing array, that holds the number of complete rows."""


def new_array(path: Path, shape: tuple[int, ...], dtype: DTypeLike) -> Mapped:
    """Create a ``.npy`` file of zeros and map it; raises `StorageFullError` on a full disk."""
    array: Mapped = open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=shape)
    try:
        _allocate(path)
    except OSError as error:
        path.unlink()
        if converted := storage_error(error, f"{path} ({array.nbytes / 1e6:,.1f} MB)"):
            raise converted from error
        raise
    return array


def read_array(path: Path, mmap_mode: Literal["r", "c"] | None = "r") -> NDArray[Any]:
    """Map a ``.npy`` file; raises `CorruptArtifactError`, with the file's name, when the file is
    missing, cut short or not an array."""
    try:
        return np.asarray(np.load(path, mmap_mode=mmap_mode, allow_pickle=False))
    except (FileNotFoundError, ValueError, EOFError) as error:
        raise CorruptArtifactError(
            f"{path} is missing or damaged ({error}); make the folder that it is in again"
        ) from error


def _allocate(path: Path) -> None:
    """Allocate all bytes of a file on the disk now; does nothing on systems that cannot."""
    if hasattr(os, "posix_fallocate"):  # not on macOS
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def open_growing(path: Path, shape: tuple[int, ...], dtype: DTypeLike) -> tuple[Mapped, int]:
    """Create an array that is filled from the front, or reopen a partly filled one.

    Returns (the array on disk, its number of complete rows).
    """
    done = path.with_suffix(DONE)
    try:
        rows = int(done.read_text())
        if read_array(path).shape == shape:
            return np.load(path, mmap_mode="r+"), rows
    except (FileNotFoundError, ValueError, CorruptArtifactError):
        pass  # a missing or damaged array is started from its first row
    done.unlink(missing_ok=True)  # the count belongs to the array that is overwritten
    return new_array(path, shape, dtype), 0


def complete(array: Mapped, path: Path, rows: int) -> None:
    """Record that the first ``rows`` rows of the array at ``path`` are complete."""
    array.flush()
    path.with_suffix(DONE).write_text(str(rows))

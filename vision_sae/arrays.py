"""Arrays on disk that are written in place.

Their room on the disk is taken before anything is written. A mapped file without it is a hole: on a
disk that is full, writing to it ends the process by SIGBUS, which nothing can catch.
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


def new_array(path: Path, shape: tuple[int, ...], dtype: DTypeLike) -> Mapped:
    """A new array of zeros in a ``.npy`` file, mapped; without room for it, `StorageFullError`."""
    array: Mapped = open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=shape)
    try:
        _take_room(path)
    except OSError as error:
        path.unlink()
        if told := storage_error(error, f"{path} ({array.nbytes / 1e6:,.1f} MB)"):
            raise told from error
        raise
    return array


def read_array(path: Path, mmap_mode: Literal["r", "c"] | None = "r") -> NDArray[Any]:
    """A ``.npy`` file, mapped; raises `CorruptArtifactError`, with its name, for one that is
    missing, cut short or of something else."""
    try:
        return np.asarray(np.load(path, mmap_mode=mmap_mode, allow_pickle=False))
    except (FileNotFoundError, ValueError, EOFError) as error:
        raise CorruptArtifactError(
            f"{path} is missing or damaged ({error}); make the folder that it is in again"
        ) from error


def _take_room(path: Path) -> None:
    """Have the file system give a file all of its bytes now; where it cannot, nothing happens."""
    if hasattr(os, "posix_fallocate"):  # not on macOS
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def open_growing(path: Path, shape: tuple[int, ...], dtype: DTypeLike) -> tuple[Mapped, int]:
    """An array that is filled from the front, gone on with where it was interrupted.

    Gives (the array on disk, how many of its rows are complete).
    """
    done = path.with_suffix(".done")
    try:
        rows = int(done.read_text())
        if read_array(path).shape == shape:
            return np.load(path, mmap_mode="r+"), rows
    except (FileNotFoundError, ValueError, CorruptArtifactError):
        pass  # never begun, or damaged: begun anew
    done.unlink(missing_ok=True)  # rows of an array that is given up
    return new_array(path, shape, dtype), 0


def complete(array: Mapped, path: Path, rows: int) -> None:
    """Note that so many rows of the array at ``path`` are there to stay."""
    array.flush()
    path.with_suffix(".done").write_text(str(rows))

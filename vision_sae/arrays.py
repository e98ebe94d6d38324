"""Arrays on disk that are written in place.

Their room on the disk is taken before anything is written. A mapped file without it is a hole: on a
disk that is full, writing to it ends the process by SIGBUS, which nothing can catch.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import DTypeLike

from vision_sae.errors import StorageFullError

Mapped = np.memmap[Any, np.dtype[Any]]


def new_array(path: Path, shape: tuple[int, ...], dtype: DTypeLike) -> Mapped:
    """A new array of zeros in a ``.npy`` file, mapped; without room for it, `StorageFullError`."""
    array: Mapped = open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=shape)
    try:
        _take_room(path)
    except OSError as error:
        path.unlink()
        if error.errno != errno.ENOSPC:
            raise
        raise StorageFullError(
            f"{path} needs {array.nbytes / 1e6:,.1f} MB, more than the disk has left; free some, "
            "or write to another disk"
        ) from error
    return array


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
    if done.is_file() and np.load(path, mmap_mode="r").shape == shape:
        return np.load(path, mmap_mode="r+"), int(done.read_text())
    done.unlink(missing_ok=True)  # rows of an array that is given up
    return new_array(path, shape, dtype), 0


def complete(array: Mapped, path: Path, rows: int) -> None:
    """Note that so many rows of the array at ``path`` are there to stay."""
    array.flush()
    path.with_suffix(".done").write_text(str(rows))

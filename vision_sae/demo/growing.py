"""Arrays on disk that are filled from the front, and gone on with where they were interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap

Mapped = np.memmap[Any, np.dtype[Any]]


def open_growing(path: Path, shape: tuple[int, ...], dtype: type[np.generic]) -> tuple[Mapped, int]:
    """(the array on disk, how many of its rows are complete)"""
    done = path.with_suffix(".done")
    if done.is_file() and np.load(path, mmap_mode="r").shape == shape:
        return np.load(path, mmap_mode="r+"), int(done.read_text())
    return open_memmap(path, mode="w+", dtype=dtype, shape=shape), 0


def complete(array: Mapped, path: Path, rows: int) -> None:
    """Note that so many rows of the array at ``path`` are there to stay."""
    array.flush()
    path.with_suffix(".done").write_text(str(rows))

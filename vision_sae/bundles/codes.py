"""The codes of all patches, by patch and by feature."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vision_sae.dictionaries.protocol import Codes
from vision_sae.errors import InvalidInputError


class SparseRows(NamedTuple):
    """Compressed sparse rows: row ``i`` owns the entries ``indptr[i]`` to ``indptr[i + 1]``."""

    indptr: NDArray[np.int64]
    indices: NDArray[np.integer]
    values: NDArray[np.float16]

    def row(self, i: int) -> tuple[NDArray[np.integer], NDArray[np.float16]]:
        """(indices, values) of one row."""
        span = slice(self.indptr[i], self.indptr[i + 1])
        return self.indices[span], self.values[span]


class CodesBuilder:
    """Collects the codes of batches of patches."""

    def __init__(self) -> None:
        self._counts: list[NDArray[np.int64]] = []
        self._indices: list[NDArray[np.uint32]] = []
        self._values: list[NDArray[np.float16]] = []

    def add(self, codes: Codes) -> None:
        """Append a batch; zero activations are dropped, also those that float16 rounds to zero.

        Raises `InvalidInputError` for activations that float16 cannot hold.
        """
        with np.errstate(over="ignore"):
            values = codes.values.numpy().astype(np.float16)
        if not np.isfinite(values).all():
            raise InvalidInputError(
                f"an activation of {float(codes.values.max()):.6g} is beyond the range of float16; "
                "build from a site with smaller vectors",
                field="site",
            )
        active = values > 0
        self._counts.append(active.sum(axis=1))
        self._indices.append(codes.indices.numpy()[active].astype(np.uint32))
        self._values.append(values[active])

    def by_patch(self) -> SparseRows:
        """patch -> (features, activations)."""
        counts = np.concatenate(self._counts)
        return SparseRows(
            np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            np.concatenate(self._indices),
            np.concatenate(self._values),
        )


def by_feature(codes: SparseRows, width: int) -> SparseRows:
    """The same codes as feature -> (patches, activations), strongest first, then by patch."""
    counts = np.diff(codes.indptr)
    patches = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
    order = np.lexsort((patches, -codes.values.astype(np.float32), codes.indices))
    per_feature = np.bincount(codes.indices, minlength=width)
    indptr = np.concatenate([[0], np.cumsum(per_feature)]).astype(np.int64)
    return SparseRows(indptr, patches[order], codes.values[order])


def save(rows: SparseRows, directory: Path, column: str) -> None:
    """Write the three arrays; ``column`` names the file of the indices."""
    directory.mkdir()
    np.save(directory / "indptr.npy", rows.indptr, allow_pickle=False)
    np.save(directory / f"{column}.npy", rows.indices, allow_pickle=False)
    np.save(directory / "values.npy", rows.values, allow_pickle=False)


def load(directory: Path, column: str) -> SparseRows:
    """Map what `save` wrote."""
    return SparseRows(
        np.load(directory / "indptr.npy"),
        np.load(directory / f"{column}.npy", mmap_mode="r"),
        np.load(directory / "values.npy", mmap_mode="r"),
    )

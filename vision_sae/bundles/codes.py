"""The codes of all patches, by patch and by feature."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float16, Int64, Integer
from numpy.typing import NDArray
from scipy.sparse import csr_array

from vision_sae.dictionaries.protocol import Codes
from vision_sae.errors import InvalidInputError
from vision_sae.models.precision import MOST_LOST


class SparseRows(NamedTuple):
    """Compressed sparse rows: row ``i`` owns the entries ``indptr[i]`` to ``indptr[i + 1]``."""

    indptr: Int64[np.ndarray, " bounds"]
    """Where each row begins, and the number of all entries."""
    indices: Integer[np.ndarray, " entries"]
    """Column of each entry."""
    values: Float16[np.ndarray, " entries"]
    """Value of each entry."""

    def row(self, i: int) -> tuple[Integer[np.ndarray, " n"], Float16[np.ndarray, " n"]]:
        """(indices, values) of the entries of one row."""
        span = slice(self.indptr[i], self.indptr[i + 1])
        return self.indices[span], self.values[span]


class _Growing:
    """An array that grows at its end, in one block of memory.

    Separate blocks for each batch would lie between the large blocks that encoding frees, and keep
    the allocator from reusing those.
    """

    def __init__(self, dtype: type[np.generic]) -> None:
        self._data = np.zeros(0, dtype=dtype)
        self._size = 0

    def extend(self, values: NDArray[Any]) -> None:
        end = self._size + len(values)
        if end > len(self._data):
            # NumPy counts references to refuse a view into memory that moves, and takes a tracer's
            # for one. No view is there yet: `array` gives the first when the growth is over.
            self._data.resize(end + end // 4, refcheck=False)
        self._data[self._size : end] = values
        self._size = end

    def array(self) -> NDArray[Any]:
        return self._data[: self._size]


class CodesBuilder:
    """Collects the codes of batches of patches."""

    def __init__(self) -> None:
        self._counts = _Growing(np.uint32)
        self._indices = _Growing(np.uint32)
        self._values = _Growing(np.float16)
        self._squares = self._lost = 0.0

    def add(self, codes: Codes) -> None:
        """Append a batch, without activations that are zero in float16.

        Raises `InvalidInputError` for activations beyond the range of float16, and when the
        relative rounding error of all activations so far exceeds `MOST_LOST`.
        """
        exact = codes.values.numpy().astype(np.float64)
        with np.errstate(over="ignore"):
            values = exact.astype(np.float16)
        if not np.isfinite(values).all():
            raise InvalidInputError(
                f"an activation of {float(codes.values.max()):.6g} is beyond the range of float16; "
                "build from a site with smaller vectors",
                field="site",
            )
        self._squares += float(np.square(exact).sum())
        self._lost += float(np.square(values - exact).sum())
        if self._lost > MOST_LOST**2 * self._squares:
            raise InvalidInputError(
                f"activations are too small for float16 (largest {exact.max():.3g}), which would "
                f"lose more than {MOST_LOST:g} of them; build from a site with larger vectors",
                field="site",
            )
        active = values > 0
        self._counts.extend(active.sum(axis=1))
        self._indices.extend(codes.indices.numpy()[active])
        self._values.extend(values[active])

    def by_patch(self) -> SparseRows:
        """patch -> (features, activations)."""
        ends = np.cumsum(self._counts.array(), dtype=np.int64)
        indptr = np.concatenate([np.zeros(1, dtype=np.int64), ends])
        return SparseRows(indptr, self._indices.array(), self._values.array())


def by_feature(codes: SparseRows, width: int) -> SparseRows:
    """Transpose codes to feature -> (patches, activations), strongest first, then by patch."""
    dtype = np.int32 if len(codes.indices) <= np.iinfo(np.int32).max else np.int64
    positions = np.arange(len(codes.indices), dtype=dtype)
    shape = (len(codes.indptr) - 1, width)
    columns = csr_array((positions, codes.indices, codes.indptr), shape).tocsc()
    order, patches = columns.data, columns.indices.astype(np.int64)
    bits = codes.values.view(np.uint16)  # positive floats and their bits have the same order
    for span in map(slice, columns.indptr[:-1], columns.indptr[1:]):
        # A stable sort keeps equal values in order of patch; NumPy sorts 16 bits by radix.
        strongest = np.argsort(~bits[order[span]], kind="stable")
        order[span], patches[span] = order[span][strongest], patches[span][strongest]
    return SparseRows(columns.indptr.astype(np.int64), patches, codes.values[order])


def save(rows: SparseRows, directory: Path, column: str) -> None:
    """Write the three arrays; ``column`` names the file of the indices."""
    directory.mkdir()
    np.save(directory / "indptr.npy", rows.indptr, allow_pickle=False)
    np.save(directory / f"{column}.npy", rows.indices, allow_pickle=False)
    np.save(directory / "values.npy", rows.values, allow_pickle=False)


def load(directory: Path, column: str) -> SparseRows:
    """Map the arrays that `save` wrote."""
    return SparseRows(
        np.load(directory / "indptr.npy"),
        np.load(directory / f"{column}.npy", mmap_mode="r"),
        np.load(directory / "values.npy", mmap_mode="r"),
    )

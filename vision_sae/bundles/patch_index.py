"""The FAISS index of patches: centred, unit-norm site vectors under inner product (cosine)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from vision_sae.errors import RecallTooLowError

_FLAT_UP_TO = 50_000 * 768
"""Numbers (rows times dimensions) up to which exact search is fast enough."""
_SQ8_UP_TO = 1_000_000
"""Rows up to which 8-bit rows fit comfortably in memory."""
_TRAIN_ROWS_PER_LIST = 64
_QUERIES = 200
_NPROBE = 32
_NEIGHBOURS = 10
_EQUAL = 1e-6
"""Cosines this close differ by rounding alone."""

Take: TypeAlias = Callable[[NDArray[np.int64]], NDArray[np.float32]]
"""Row numbers, ascending (n) -> their vectors (n, D)."""


class IndexReport(NamedTuple):
    """What the manifest says of the index."""

    type: str
    """FAISS factory string."""
    rows: int
    nprobe: int
    """Inverted lists visited per query; 0 for exact search."""
    recall_at_10: float
    """Share of the exact ten nearest that a search returns, each query itself left out."""
    floor: float
    """The recall below which the index would not have been published."""


def index_type(rows: int, dim: int) -> str:
    """The FAISS factory string for this many rows of ``dim`` dimensions."""
    if rows * dim < _FLAT_UP_TO:
        return "Flat"
    lists = 2 ** round(np.log2(np.sqrt(rows)))
    return f"IVF{lists},SQ8" if rows < _SQ8_UP_TO else f"IVF{lists},RaBitQfs,Refine(SQ8)"


def search(
    index: Any, queries: NDArray[np.float32], k: int, nprobe: int, *, selector: Any = None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(cosines, rows) of the k nearest patches of each query (Q, D) -> 2 x (Q, k).

    ``selector`` is a FAISS selector of the rows that may be found. Parameters travel with the call:
    setting them on a shared index would be a race.
    """
    parameters: Any = None
    if nprobe:
        parameters = faiss.SearchParametersIVF(nprobe=nprobe, sel=selector)  # type: ignore[call-arg]
    elif selector is not None:
        parameters = faiss.SearchParameters(sel=selector)  # type: ignore[call-arg]
    if nprobe and isinstance(index, faiss.IndexRefine):
        parameters = faiss.IndexRefineSearchParameters(  # type: ignore[call-arg]
            k_factor=10, base_index_params=parameters
        )
    cosines, rows = index.search(queries, k, params=parameters)
    return cosines, rows


class PatchIndexBuilder:
    """Builds the index from batches, with no more of the data in memory than one of them.

    ``rows`` normalised vectors of ``dim`` dimensions are to come in row order; ``take`` gives those
    of any rows, (n) -> (n, dim), before they come: a sample to train the index on, and the queries
    whose exact neighbours are found along the way.
    """

    def __init__(self, dim: int, rows: int, take: Take, *, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self._take, self._rows, self._seen = take, rows, 0
        self._index = faiss.index_factory(dim, index_type(rows, dim), faiss.METRIC_INNER_PRODUCT)
        self._lists = 0 if self._index.is_trained else faiss.extract_index_ivf(self._index).nlist
        if self._lists:
            sample = random.permutation(rows)[: self._lists * _TRAIN_ROWS_PER_LIST]
            self._index.train(take(np.sort(sample)))
        self._own = np.sort(random.permutation(rows)[:_QUERIES])
        self._queries = take(self._own)
        self._nearest = torch.empty(len(self._own), 0)
        self._nearest_rows = torch.empty(len(self._own), 0, dtype=torch.int64)

    def add(self, vectors: NDArray[np.float32]) -> None:
        """Index the next rows (n, dim)."""
        self._index.add(vectors)
        cosines = torch.from_numpy(self._queries) @ torch.from_numpy(vectors).T
        rows = torch.arange(self._seen, self._seen + len(vectors)).expand(len(cosines), -1)
        self._seen += len(vectors)
        cosines = torch.cat([self._nearest, cosines], 1)
        self._nearest, kept = cosines.topk(min(_NEIGHBOURS + 1, cosines.shape[1]), dim=1)
        self._nearest_rows = torch.cat([self._nearest_rows, rows], 1).gather(1, kept)

    def _others(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of the rows answering each query (Q, n) are the ten nearest but for its own."""
        others = (rows != self._own[:, None]) & (rows >= 0)  # -1: too few were found
        return np.asarray(others & (others.cumsum(axis=1) <= _NEIGHBOURS))

    def _recall(self, nprobe: int) -> float:
        """recall@10 on the queries, each left out of its own answer.

        A row as near as the tenth nearest counts, whichever of its equals exact search names.
        """
        wanted = self._others(self._nearest_rows.numpy())
        tenth = np.where(wanted, self._nearest.numpy(), np.inf).min(axis=1)
        _, found = search(self._index, self._queries, _NEIGHBOURS + 1, nprobe)
        rows, place = np.unique(found.clip(0), return_inverse=True)
        vectors = self._take(rows)[place.reshape(found.shape)]
        cosines = np.einsum("qnd,qd->qn", vectors, self._queries)
        hits = self._others(found) & (cosines >= tenth[:, None] - _EQUAL)
        return float(hits.sum() / wanted.sum()) if wanted.any() else 1.0

    def finish(self, floor: float) -> tuple[Any, IndexReport]:
        """The index, when all rows are in it, and what was measured on it.

        Lists visited are doubled until recall@10 against exact search reaches ``floor``; raises
        `RecallTooLowError` when even all of them do not.
        """
        nprobe = min(_NPROBE, self._lists)
        recall = self._recall(nprobe)
        while recall < floor and nprobe < self._lists:
            nprobe *= 2
            recall = self._recall(nprobe)
        kind = index_type(self._rows, self._index.d)
        if recall < floor:
            raise RecallTooLowError(
                f"the patch index {kind} reaches recall@10 {recall:.3f}, below the floor {floor}; "
                "lower build.recall_floor or index fewer patches"
            )
        return self._index, IndexReport(kind, self._rows, nprobe, recall, floor)


def save_index(index: Any, path: Path) -> None:
    """Write the FAISS file."""
    faiss.write_index(index, str(path))


def load_index(path: Path) -> Any:
    """Map a FAISS file read-only; every type can ``reconstruct`` the vectors of its rows."""
    index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
    if isinstance(index, faiss.IndexIVF):  # where each row lies: 8 bytes a row, up to a million
        index.make_direct_map()
    return index

"""The FAISS index of patches: centred, unit-norm site vectors under inner product (cosine)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import numpy as np
from numpy.typing import NDArray

from vision_sae.errors import RecallTooLowError

_FLAT_UP_TO = 50_000
"""Rows up to which exact search is fast enough."""
_SQ8_UP_TO = 1_000_000
"""Rows up to which 8-bit rows fit comfortably in memory."""
_TRAIN_ROWS_PER_LIST = 64
_QUERIES = 200
_NPROBE = 32


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


def normalised(vectors: NDArray[np.float32], centre: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of ``vectors - centre`` scaled to unit norm; a zero row stays zero."""
    centred = vectors - centre
    norm = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.asarray(centred / np.maximum(norm, 1e-12), dtype=np.float32)


def index_type(rows: int) -> str:
    """The FAISS factory string for this many rows."""
    if rows < _FLAT_UP_TO:
        return "Flat"
    lists = 2 ** round(np.log2(np.sqrt(rows)))
    return f"IVF{lists},SQ8" if rows < _SQ8_UP_TO else f"IVF{lists},RaBitQfs,Refine(SQ8)"


def search(
    index: Any, queries: NDArray[np.float32], k: int, nprobe: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(cosines, rows) of the k nearest patches of each query (Q, D) -> 2 x (Q, k).

    Parameters travel with the call: setting them on a shared index would be a race.
    """
    parameters: Any = None
    if nprobe:
        parameters = faiss.SearchParametersIVF(nprobe=nprobe)  # type: ignore[call-arg]
    if nprobe and isinstance(index, faiss.IndexRefine):
        parameters = faiss.IndexRefineSearchParameters(  # type: ignore[call-arg]
            k_factor=10, base_index_params=parameters
        )
    cosines, rows = index.search(queries, k, params=parameters)
    return cosines, rows


def _recall(
    index: Any, exact: Any, queries: NDArray[np.float32], own: NDArray[np.int64], nprobe: int
) -> float:
    """recall@10 on indexed rows, each left out of its own answer."""
    _, truth = exact.search(queries, 11)
    _, found = search(index, queries, 11, nprobe)
    hits = asked = 0
    for row, wanted, got in zip(own, truth, found, strict=True):
        nearest = wanted[(wanted != row) & (wanted >= 0)][:10]  # -1: fewer than 11 rows in all
        hits += len(np.intersect1d(nearest, got[got != row][:10]))
        asked += len(nearest)
    return hits / asked if asked else 1.0


def build_index(
    batches: Iterable[NDArray[np.float32]], dim: int, rows: int, *, floor: float, seed: int = 0
) -> tuple[Any, IndexReport]:
    """Build the index over ``rows`` normalised vectors that come in batches, in row order.

    Lists visited are doubled until recall@10 against exact search reaches ``floor``; raises
    `RecallTooLowError` when even all of them do not.
    """
    vectors = np.concatenate(list(batches))
    kind = index_type(rows)
    index = faiss.index_factory(dim, kind, faiss.METRIC_INNER_PRODUCT)
    random = np.random.default_rng(seed)
    nprobe = 0
    if not index.is_trained:
        lists = faiss.extract_index_ivf(index).nlist
        sample = random.permutation(rows)[: lists * _TRAIN_ROWS_PER_LIST]
        index.train(vectors[np.sort(sample)])
        nprobe = _NPROBE
    index.add(vectors)

    exact = faiss.IndexFlatIP(dim)
    exact.add(vectors)
    own = np.sort(random.permutation(rows)[:_QUERIES])
    recall = _recall(index, exact, vectors[own], own, nprobe)
    while recall < floor and nprobe and nprobe < faiss.extract_index_ivf(index).nlist:
        nprobe *= 2
        recall = _recall(index, exact, vectors[own], own, nprobe)
    if recall < floor:
        raise RecallTooLowError(
            f"the patch index {kind} reaches recall@10 {recall:.3f}, below the floor {floor}; "
            "lower build.recall_floor or index fewer patches"
        )
    return index, IndexReport(kind, rows, nprobe, recall, floor)


def save_index(index: Any, path: Path) -> None:
    """Write the FAISS file."""
    faiss.write_index(index, str(path))


def load_index(path: Path) -> Any:
    """Map a FAISS file read-only."""
    return faiss.read_index(str(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)

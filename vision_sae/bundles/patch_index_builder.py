"""Building the FAISS index of patches from batches, and measuring its recall."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import faiss
import numpy as np
import torch
from jaxtyping import Float32, Integer
from numpy.typing import NDArray

from vision_sae.bundles import patch_index_gpu
from vision_sae.bundles.patch_index import PatchIndex
from vision_sae.errors import RecallTooLowError

_FLAT_UP_TO = 50_000 * 768
"""Numbers (rows times dimensions) up to which exact search is fast enough."""
_SQ8_UP_TO = 1_000_000
"""Rows up to which 8-bit rows fit comfortably in memory."""
SHARD_ROWS = 4_000_000
"""Rows of one FAISS file, which is built in memory: 1.8 GB at 450 bytes a row."""
_TRAIN_ROWS_PER_LIST = 64
_QUERIES = 200
NPROBE = 32
"""Number of inverted lists that are visited at first."""
_NEIGHBOURS = 10
_EQUAL = 1e-6
"""Cosines with a smaller difference differ only by rounding."""

Take: TypeAlias = Callable[[NDArray[np.int64]], NDArray[np.float32]]
"""A function from ascending row numbers (n) to the vectors of these rows (n, D)."""


class IndexReport(NamedTuple):
    """The manifest's entry about the index."""

    type: str
    """FAISS factory string."""
    rows: int
    nprobe: int
    """Inverted lists visited per query; 0 for exact search."""
    recall_at_10: float
    """Share of the exact ten nearest patches that a search returns. Patches of the query's source
    are excluded, because a new picture has no such patches in the index."""
    floor: float
    """The recall below which the index would not have been published."""


def index_type(rows: int, dim: int) -> str:
    """The FAISS factory string for this many rows of ``dim`` dimensions.

    In an index with refinement, the finer rows are rotated at random before each dimension is
    rounded to 8 bits, because a few dimensions of wide range would be rounded coarsely otherwise.
    """
    if rows * dim < _FLAT_UP_TO:
        return "Flat"
    lists = 2 ** round(np.log2(np.sqrt(rows)))
    if rows < _SQ8_UP_TO:
        return f"IVF{lists},SQ8"
    return f"IVF{lists},RaBitQfs,Refine(RR{dim},SQ8)"


class PatchIndexBuilder:
    """Builds the index from batches, with one batch and one shard in memory.

    The caller adds ``rows`` normalised vectors of ``dim`` dimensions in row order. ``take`` returns
    the vectors of any rows in advance: a sample to train the index on, and the queries that measure
    recall, whose exact neighbours are computed while batches are added. ``sources`` has the number
    of each picture's source; all pictures have the same number of rows. A file is written in
    ``folder`` for every ``shard_rows`` rows.

    On a GPU, lists are trained there, and shards are filled there if FAISS supports the type of
    index and the GPU has room for a shard. The files are those of the CPU.
    """

    def __init__(
        self,
        folder: Path,
        dim: int,
        rows: int,
        take: Take,
        sources: Integer[np.ndarray, " pictures"],
        *,
        shard_rows: int = SHARD_ROWS,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        random = np.random.default_rng(seed)
        self._folder, self._take, self._rows, self._shard_rows = folder, take, rows, shard_rows
        self._seen = self._written = 0
        folder.mkdir(parents=True)
        kind = index_type(rows, dim)
        gpu = patch_index_gpu.gpu_of(device)
        self._filled_on = gpu if _fills(gpu, kind, min(rows, shard_rows), dim) else None
        index = faiss.index_factory(dim, kind, faiss.METRIC_INNER_PRODUCT)
        self._lists = 0 if index.is_trained else faiss.extract_index_ivf(index).nlist
        if self._lists:
            sample = random.permutation(rows)[: self._lists * _TRAIN_ROWS_PER_LIST]
            with patch_index_gpu.clustered_on(faiss.extract_index_ivf(index), gpu):
                index.train(take(np.sort(sample)))
        self._trained = faiss.serialize_index(index)
        self._shard = self._empty_shard()
        self._sources, self._per_picture = sources, rows // len(sources)
        own = np.sort(random.permutation(rows)[:_QUERIES])
        self._queries, self._query_sources = take(own), sources[own // self._per_picture]
        self._nearest = torch.empty(len(own), 0)

    def add(self, vectors: Float32[np.ndarray, "n D"]) -> None:
        """Index the vectors of the next rows."""
        start = 0
        while start < len(vectors):
            room = self._shard_rows - self._shard.ntotal
            self._shard.add(vectors[start : start + room])
            start += room
            if self._shard.ntotal == self._shard_rows:
                self._write()
        rows = np.arange(self._seen, self._seen + len(vectors))
        self._seen += len(vectors)
        same = self._query_sources[:, None] == self._sources[rows // self._per_picture]
        cosines = torch.from_numpy(self._queries) @ torch.from_numpy(vectors).T
        cosines.masked_fill_(torch.from_numpy(same), -torch.inf)
        cosines = torch.cat([self._nearest, cosines], 1)
        self._nearest = cosines.topk(min(_NEIGHBOURS, cosines.shape[1]), dim=1).values

    def _empty_shard(self) -> Any:
        index = faiss.deserialize_index(self._trained)
        return index if self._filled_on is None else patch_index_gpu.on_gpu(index, self._filled_on)

    def _write(self) -> None:
        on_gpu = self._filled_on is not None
        shard = patch_index_gpu.on_cpu(self._shard) if on_gpu else self._shard
        write_shard(shard, self._folder / f"{self._written:05}.faiss")
        self._written += 1
        self._shard = self._empty_shard()

    def _recall(self, nprobe: int) -> float:
        """recall@10 on the queries, among patches of other sources.

        A result that is as near as the exact tenth neighbour counts as a hit, so ties do not
        matter.
        """
        nearest = self._nearest.numpy()
        wanted = np.isfinite(nearest)
        tenth = np.where(wanted, nearest, np.inf).min(axis=1)
        index, hits = PatchIndex.load(self._folder, nprobe), 0
        for query, source, least in zip(self._queries, self._query_sources, tenth, strict=True):
            allowed = np.repeat(self._sources != source, self._per_picture)
            _, (rows,) = index.search(query[None], _NEIGHBOURS, allowed)
            vectors = self._take(np.sort(rows[rows >= 0]))
            hits += int((vectors @ query >= least - _EQUAL).sum())
        return float(hits / wanted.sum()) if wanted.any() else 1.0

    def finish(self, floor: float) -> IndexReport:
        """Write the last shard after all rows were added, and measure recall@10 of the index.

        The number of visited lists is doubled until recall@10 against exact search reaches
        ``floor``. Raises `RecallTooLowError` when a search of all lists does not reach it.
        """
        dim = self._shard.d
        if self._shard.ntotal:
            self._write()
        nprobe = min(NPROBE, self._lists)
        recall = self._recall(nprobe)
        while recall < floor and nprobe < self._lists:
            nprobe *= 2
            recall = self._recall(nprobe)
        kind = index_type(self._rows, dim)
        if recall < floor:
            raise RecallTooLowError(
                f"the patch index {kind} reaches recall@10 {recall:.3f}, below the floor {floor}; "
                "lower build.recall_floor or index fewer patches"
            )
        return IndexReport(kind, self._rows, nprobe, recall, floor)


def _fills(gpu: int | None, kind: str, rows: int, dim: int) -> bool:
    """Whether shards of an index are filled on a GPU."""
    if gpu is None or not patch_index_gpu.is_supported(kind):
        return False
    return patch_index_gpu.has_room(kind, rows, dim, patch_index_gpu.free_bytes(gpu))


def write_shard(index: Any, path: Path) -> None:
    """Write one FAISS file."""
    faiss.write_index(index, str(path))

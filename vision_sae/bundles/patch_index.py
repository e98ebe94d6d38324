"""The FAISS index of patches: centred, unit-norm site vectors under inner product (cosine)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, cast

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from vision_sae.errors import RecallTooLowError

_FLAT_UP_TO = 50_000 * 768
"""Numbers (rows times dimensions) up to which exact search is fast enough."""
_SQ8_UP_TO = 1_000_000
"""Rows up to which 8-bit rows fit comfortably in memory."""
SHARD_ROWS = 4_000_000
"""Rows of one FAISS file, which is in memory while it is made: 1.8 GB at 450 bytes a row."""
_TRAIN_ROWS_PER_LIST = 64
_QUERIES = 200
NPROBE = 32
"""Inverted lists visited at first."""
_NEIGHBOURS = 10
REFINED = 40
"""Candidates compared anew for each answer, where the index keeps a finer copy of its rows."""
_CANDIDATES = 4000
"""The most candidates of a query that are compared anew, if it asks for fewer answers."""
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
    """Share of the exact ten nearest that a search returns, of patches of another source than the
    query's: what a picture finds that is not in the index."""
    floor: float
    """The recall below which the index would not have been published."""


def index_type(rows: int, dim: int) -> str:
    """The FAISS factory string for this many rows of ``dim`` dimensions.

    Where candidates are refined, the finer rows are rotated at random before each dimension is
    rounded to 8 bits: a few dimensions of wide range would else be rounded coarsely.
    """
    if rows * dim < _FLAT_UP_TO:
        return "Flat"
    lists = 2 ** round(np.log2(np.sqrt(rows)))
    if rows < _SQ8_UP_TO:
        return f"IVF{lists},SQ8"
    return f"IVF{lists},RaBitQfs,Refine(RR{dim},SQ8)"


class PatchIndex:
    """FAISS indexes of successive ranges of patches, which answer as one.

    All have the same lists and the same quantiser, and where candidates are refined, those of all
    are chosen together: an answer does not depend on where the ranges are cut. Searches may run at
    the same time: whatever belongs to one travels with the call.
    """

    def __init__(self, shards: Sequence[Any], nprobe: int) -> None:
        self._shards, self._nprobe = tuple(shards), nprobe
        self._starts = np.cumsum([0, *(shard.ntotal for shard in self._shards)])

    @classmethod
    def load(cls, folder: Path, nprobe: int) -> PatchIndex:
        """Map the files of ``folder`` read-only; ``nprobe`` as its report says."""
        shards = []
        for path in sorted(folder.glob("*.faiss")):
            shard = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
            if isinstance(shard, faiss.IndexIVF):  # where each row lies: 8 bytes a row
                shard.make_direct_map()
            shards.append(shard)
        return cls(shards, nprobe)

    def __len__(self) -> int:
        """Number of patches."""
        return int(self._starts[-1])

    def search(
        self, queries: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """(cosines, rows) of the k nearest patches of each query (Q, D) -> 2 x (Q, k).

        ``allowed`` (patches) says which may be found; the fewer they are, the more lists are
        visited, so that as many of them are looked at as of all without it. A row of -1 stands for
        none: too few were allowed, or in the lists that are visited.
        """
        share = 1.0 if allowed is None else float(allowed.mean())
        nprobe = int(self._nprobe / max(share, 1e-9))
        if len(self._shards) == 1:
            return self._search(self._shards[0], queries, k, nprobe, allowed)
        refined = isinstance(self._shards[0], faiss.IndexRefine)
        depth = round(k * _factor(k)) if refined else k
        found = [
            self._search(
                shard.base_index if refined else shard,
                queries,
                depth,
                nprobe,
                None if allowed is None else allowed[start:stop],
            )
            for shard, start, stop in self._ranges()
        ]
        cosines, rows = self._joined(found, depth)
        if not refined:
            return cosines, rows
        for of_query, query, places in zip(cosines, queries, rows, strict=True):
            of_query[:] = np.where(places < 0, -np.inf, self.vectors(places.clip(0)) @ query)
        return _best(cosines, rows, k)

    def _joined(
        self, found: Sequence[tuple[NDArray[np.float32], NDArray[np.int64]]], k: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The k best of what the ranges found, by rows of all."""
        cosines = np.concatenate([cosines for cosines, _ in found], axis=1)
        rows = np.concatenate(
            [
                np.where(rows < 0, -1, rows + start)
                for (_, rows), start in zip(found, self._starts[:-1], strict=True)
            ],
            axis=1,
        )
        return _best(cosines, rows, k)

    def vectors(self, rows: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """The vectors of rows (n) as they are kept -> (n, D)."""
        found = np.empty((len(rows), self._shards[0].d), dtype=np.float32)
        for shard, start, stop in self._ranges():
            here = (rows >= start) & (rows < stop)
            if here.any():
                found[here] = shard.reconstruct_batch((rows[here] - start).astype(np.int64))
        return found

    def _ranges(self) -> Iterator[tuple[Any, int, int]]:
        starts = self._starts.tolist()
        return zip(self._shards, starts[:-1], starts[1:], strict=True)

    def _search(
        self,
        shard: Any,
        queries: NDArray[np.float32],
        k: int,
        nprobe: int,
        allowed: NDArray[np.bool_] | None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        parameters: Any = None
        # The bits must outlive the search: FAISS keeps their address alone.
        bits = None if allowed is None else np.packbits(allowed, bitorder="little")
        selector = None if bits is None else cast(Any, faiss.IDSelectorBitmap)(bits)
        if nprobe:
            lists = faiss.extract_index_ivf(shard).nlist
            parameters = cast(Any, faiss.SearchParametersIVF)(
                nprobe=min(nprobe, lists), sel=selector
            )
        elif selector is not None:
            parameters = cast(Any, faiss.SearchParameters)(sel=selector)
        if nprobe and isinstance(shard, faiss.IndexRefine):
            parameters = cast(Any, faiss.IndexRefineSearchParameters)(
                k_factor=_factor(k), base_index_params=parameters
            )
        cosines, rows = shard.search(queries, k, params=parameters)
        return cosines, rows


def _best(
    cosines: NDArray[np.float32], rows: NDArray[np.int64], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k rows of each query (Q, n) with the largest cosines, the largest first."""
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(cosines, order, 1), np.take_along_axis(rows, order, 1)


def _factor(k: int) -> float:
    """Candidates that are compared anew for each of k answers."""
    return min(max(_CANDIDATES / k, 1), REFINED)


class PatchIndexBuilder:
    """Builds the index from batches, with no more in memory than one of them and one shard.

    ``rows`` normalised vectors of ``dim`` dimensions are to come in row order; ``take`` gives those
    of any rows, (n) -> (n, dim), before they come: a sample to train the index on, and the queries
    whose exact neighbours are found along the way. ``sources`` (pictures) are the numbers of the
    pictures' sources; each picture has as many rows as the next. Every ``shard_rows`` rows a file
    is written in ``folder``.
    """

    def __init__(
        self,
        folder: Path,
        dim: int,
        rows: int,
        take: Take,
        sources: NDArray[np.integer[Any]],
        *,
        shard_rows: int = SHARD_ROWS,
        seed: int = 0,
    ) -> None:
        random = np.random.default_rng(seed)
        self._folder, self._take, self._rows, self._shard_rows = folder, take, rows, shard_rows
        self._seen = self._written = 0
        folder.mkdir(parents=True)
        index = faiss.index_factory(dim, index_type(rows, dim), faiss.METRIC_INNER_PRODUCT)
        self._lists = 0 if index.is_trained else faiss.extract_index_ivf(index).nlist
        if self._lists:
            sample = random.permutation(rows)[: self._lists * _TRAIN_ROWS_PER_LIST]
            with _clustered_on_gpus(faiss.extract_index_ivf(index)):
                index.train(take(np.sort(sample)))
        self._trained = faiss.serialize_index(index)
        self._shard = index
        self._sources, self._per_picture = sources, rows // len(sources)
        own = np.sort(random.permutation(rows)[:_QUERIES])
        self._queries, self._query_sources = take(own), sources[own // self._per_picture]
        self._nearest = torch.empty(len(own), 0)

    def add(self, vectors: NDArray[np.float32]) -> None:
        """Index the next rows (n, dim)."""
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

    def _write(self) -> None:
        write_shard(self._shard, self._folder / f"{self._written:05}.faiss")
        self._written += 1
        self._shard = faiss.deserialize_index(self._trained)

    def _recall(self, nprobe: int) -> float:
        """recall@10 on the queries, among patches of other sources.

        A row as near as the tenth nearest counts, whichever of its equals exact search names.
        """
        nearest = self._nearest.numpy()
        wanted = np.isfinite(nearest)
        tenth = np.where(wanted, nearest, np.inf).min(axis=1)
        index, hits = PatchIndex.load(self._folder, nprobe), 0
        for query, source, least in zip(self._queries, self._query_sources, tenth, strict=True):
            allowed = np.repeat(self._sources != source, self._per_picture)
            _, (found,) = index.search(query[None], _NEIGHBOURS, allowed)
            vectors = self._take(np.sort(found[found >= 0]))
            hits += int((vectors @ query >= least - _EQUAL).sum())
        return float(hits / wanted.sum()) if wanted.any() else 1.0

    def finish(self, floor: float) -> IndexReport:
        """Write what is left, when all rows have come; what was measured on the index.

        Lists visited are doubled until recall@10 against exact search reaches ``floor``; raises
        `RecallTooLowError` when even all of them do not.
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


@contextmanager
def _clustered_on_gpus(ivf: Any) -> Iterator[None]:
    """Train the lists of ``ivf`` on all GPUs where FAISS has some; the index stays one of the CPU.

    Not yet run on a GPU.
    """
    if not (hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus()):
        yield
        return
    flat = faiss.IndexFlat(ivf.d, ivf.metric_type)
    ivf.clustering_index = cast(Any, faiss).index_cpu_to_all_gpus(flat)
    try:
        yield
    finally:
        ivf.clustering_index = None


def write_shard(index: Any, path: Path) -> None:
    """Write one FAISS file."""
    faiss.write_index(index, str(path))

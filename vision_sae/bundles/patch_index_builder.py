"""Building the FAISS index of patches from batches, and measuring its recall.

Which type of index answers fastest depends on the CPU: on AVX2 the 8-bit index, on AVX-512 the one
that refines coarse codes. So all types are filled with the first rows, and the fastest goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import faiss
import numpy as np
import torch
from jaxtyping import Float32, Integer
from numpy.typing import NDArray

from vision_sae.bundles import patch_index_gpu
from vision_sae.bundles.patch_index import PatchIndex
from vision_sae.config import BuildConfig
from vision_sae.errors import InvalidInputError, RecallTooLowError

_FLAT_UP_TO = 50_000 * 768
"""Numbers (rows times dimensions) up to which exact search is fast enough."""
_SQ8_UP_TO = 1_000_000
"""Rows up to which 8-bit rows are usually fastest."""
_TRIED_FROM = 20_000
"""Rows from which types are tried. Fewer rows are searched exactly in a few milliseconds."""
_TRIED_ROWS = 300_000
"""Rows with which every type is filled."""
_ROUNDS = 3
"""Times that all queries of a trial are searched; the fastest round counts."""
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


class Trial(NamedTuple):
    """A type of index that was tried on the first rows."""

    type: str
    """FAISS factory string."""
    rows: int
    nprobe: int
    """Inverted lists visited per query; 0 for exact search."""
    recall_at_10: float
    queries_per_s: float
    """Queries in a second, one after another."""
    bytes_per_vector: float


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
    tried: Sequence[dict[str, Any]] = ()
    """The `Trial`s that chose the type; empty where one type was possible."""


class IndexConfig(NamedTuple):
    """What the configuration of a build says of its indexes."""

    floor: float = 0.95
    """The recall@10 below which an index is not published."""
    type: Literal["auto", "flat", "ivf-sq8", "ivf-rabitq"] = "auto"
    most_bytes: int = 16 * 2**30
    """The most bytes of an index."""
    shard_rows: int = SHARD_ROWS
    """Rows of a file."""

    @classmethod
    def of(cls, config: BuildConfig) -> IndexConfig:
        """That of a build."""
        return cls(
            config.recall_floor,
            config.index_type,
            int(config.index_gib * 2**30),
            config.index_shard_rows,
        )


def _lists(rows: int) -> int:
    """Inverted lists of an index of this many rows."""
    return int(2 ** round(np.log2(np.sqrt(max(rows, 1)))))


def _types(rows: int, dim: int) -> dict[str, str]:
    """{name in the configuration: FAISS factory string}.

    In an index with refinement, the finer rows are rotated at random before each dimension is
    rounded to 8 bits, because a few dimensions of wide range would be rounded coarsely otherwise.
    """
    lists = _lists(rows)
    return {
        "flat": "Flat",
        "ivf-sq8": f"IVF{lists},SQ8",
        "ivf-rabitq": f"IVF{lists},RaBitQfs,Refine(RR{dim},SQ8)",
    }


def _vector_bytes(name: str, dim: int) -> float:
    """Bytes of a vector in a type of index, its number among them."""
    return {"flat": 4 * dim, "ivf-sq8": dim + 8, "ivf-rabitq": 1.125 * dim + 16}[name]


def usual_type(rows: int, dim: int) -> str:
    """The FAISS factory string where nothing is tried: of small indexes, and on GPUs."""
    types = _types(rows, dim)
    if rows * dim < _FLAT_UP_TO:
        return types["flat"]
    return types["ivf-sq8" if rows < _SQ8_UP_TO else "ivf-rabitq"]


def candidates(rows: int, dim: int, config: IndexConfig) -> list[str]:
    """The FAISS factory strings to try.

    Raises `InvalidInputError` at ``build.index_gib`` if every type takes more bytes.
    """
    types = _types(rows, dim)
    if config.type != "auto":
        types = {config.type: types[config.type]}
    elif rows * dim >= _FLAT_UP_TO:
        del types["flat"]
    sizes = {name: round(rows * _vector_bytes(name, dim)) for name in types}
    fitting = [types[name] for name, size in sizes.items() if size <= config.most_bytes]
    if not fitting:
        least, most = (size / 2**30 for size in (min(sizes.values()), config.most_bytes))
        raise InvalidInputError(
            f"an index of {rows} patches takes at least {least:.3g} GiB, more than "
            f"build.index_gib, {most:.3g}; raise it, or index fewer patches",
            field="build.index_gib",
        )
    if config.type != "auto" or rows >= _TRIED_FROM:
        return fitting
    usual, too_large = usual_type(rows, dim), set(types.values()) - set(fitting)
    return fitting[:1] if usual in too_large else [usual]


def fastest(trials: Sequence[Trial], floor: float) -> Trial:
    """The fastest type that reaches the recall ``floor``; without one, that of the best recall."""
    reaching = [trial for trial in trials if trial.recall_at_10 >= floor]
    if not reaching:
        return max(trials, key=lambda trial: trial.recall_at_10)
    return max(reaching, key=lambda trial: trial.queries_per_s)


class _Filling:
    """An index of one type that is being filled."""

    def __init__(self, kind: str, trained: Any, gpu: int | None) -> None:
        self.kind, self._gpu = kind, gpu
        self._trained = faiss.serialize_index(trained)
        self.begin_shard()

    def begin_shard(self) -> None:
        """Begin with an empty shard."""
        index = faiss.deserialize_index(self._trained)
        self.shard = index if self._gpu is None else patch_index_gpu.on_gpu(index, self._gpu)

    def on_cpu(self) -> Any:
        """The shard as an index of the CPU."""
        return self.shard if self._gpu is None else patch_index_gpu.on_cpu(self.shard)


_USUAL = IndexConfig()


class PatchIndexBuilder:
    """Builds the index from batches, with one batch and one shard in memory.

    The caller adds ``rows`` normalised vectors of ``dim`` dimensions in row order. ``take`` returns
    the vectors of any rows in advance: a sample to train the index on, and the queries that measure
    recall, whose exact neighbours are computed while batches are added. ``sources`` has the number
    of each picture's source; all pictures have the same number of rows. A file is written in
    ``folder`` for every ``config.shard_rows`` rows.

    All `candidates` are filled with the first rows and searched; the fastest is filled further.

    On a GPU, lists are trained there, and shards are filled there if FAISS supports the type of
    index and the GPU has room for a shard. The files are those of the CPU. Types are not tried.

    Raises `InvalidInputError` if no type fits into ``config.most_bytes``.
    """

    def __init__(
        self,
        folder: Path,
        dim: int,
        rows: int,
        take: Take,
        sources: Integer[np.ndarray, " pictures"],
        config: IndexConfig = _USUAL,
        *,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        random = np.random.default_rng(seed)
        self._folder, self._take, self._rows, self._config = folder, take, rows, config
        self._seen = self._written = 0
        gpu = patch_index_gpu.gpu_of(device)
        automatic = config.type == "auto" and gpu is not None
        kinds = [usual_type(rows, dim)] if automatic else candidates(rows, dim, config)
        folder.mkdir(parents=True)
        self._lists, self._fillings, centroids = 0, [], None
        for kind in kinds:
            index = faiss.index_factory(dim, kind, faiss.METRIC_INNER_PRODUCT)
            if not index.is_trained:
                ivf = faiss.extract_index_ivf(index)
                if centroids is None:
                    self._lists = ivf.nlist
                    sample = random.permutation(rows)[: self._lists * _TRAIN_ROWS_PER_LIST]
                    vectors = take(np.sort(sample))
                else:  # the lists of all types are the same
                    ivf.quantizer.add(centroids)
                with patch_index_gpu.clustered_on(ivf, gpu):
                    index.train(vectors)
                centroids = ivf.quantizer.reconstruct_n(0, ivf.nlist)
            fills = _fills(gpu, kind, min(rows, config.shard_rows), dim)
            self._fillings.append(_Filling(kind, index, gpu if fills else None))
        self._trials: list[Trial] = []
        self._sources, self._per_picture = sources, rows // len(sources)
        own = np.sort(random.permutation(rows)[:_QUERIES])
        self._queries, self._query_sources = take(own), sources[own // self._per_picture]
        self._nearest = torch.empty(len(own), 0)

    def add(self, vectors: Float32[np.ndarray, "n D"]) -> None:
        """Index the vectors of the next rows."""
        while len(vectors):
            part, vectors = np.split(vectors, [self._room()])
            for filling in self._fillings:
                filling.shard.add(part)
            self._compare(part)
            if len(self._fillings) > 1 and not self._room():
                self._decide()
            if self._fillings[0].shard.ntotal == self._config.shard_rows:
                self._write()

    def _room(self) -> int:
        """Rows until the shard is full, or until a type is chosen."""
        filled, most = int(self._fillings[0].shard.ntotal), self._config.shard_rows
        if len(self._fillings) > 1:
            most = min(most, _TRIED_ROWS, self._rows)
        return most - filled

    def _compare(self, vectors: NDArray[np.float32]) -> None:
        """Compare the queries with the next rows of other sources."""
        rows = np.arange(self._seen, self._seen + len(vectors))
        self._seen += len(vectors)
        same = self._query_sources[:, None] == self._sources[rows // self._per_picture]
        cosines = torch.from_numpy(self._queries) @ torch.from_numpy(vectors).T
        cosines.masked_fill_(torch.from_numpy(same), -torch.inf)
        cosines = torch.cat([self._nearest, cosines], 1)
        self._nearest = cosines.topk(min(_NEIGHBOURS, cosines.shape[1]), dim=1).values

    def _decide(self) -> None:
        """Try all types on the rows so far, and go on with the fastest."""
        self._trials = [self._trial(filling) for filling in self._fillings]
        best = self._trials.index(fastest(self._trials, self._config.floor))
        self._fillings = [self._fillings[best]]

    def _trial(self, filling: _Filling) -> Trial:
        """Search an index of the first rows as one of all rows would be: a list has fewer rows
        yet, so that more lists are visited."""
        index, floor = filling.on_cpu(), self._config.floor
        lists = 0 if filling.kind == "Flat" else self._lists
        nprobe = min(lists, round(NPROBE * self._rows / self._seen))
        recall = self._recall(PatchIndex([index], nprobe))
        while recall < floor and nprobe < lists:
            nprobe = min(2 * nprobe, lists)
            recall = self._recall(PatchIndex([index], nprobe))
        tried, best = PatchIndex([index], nprobe), float("inf")
        for _ in range(_ROUNDS):
            begin = time.perf_counter()
            for query in self._queries:
                tried.search(query[None], _NEIGHBOURS)
            best = min(best, time.perf_counter() - begin)
        size = faiss.serialize_index(index).nbytes / self._seen
        rate = len(self._queries) / best
        return Trial(filling.kind, self._seen, nprobe, recall, round(rate, 1), round(size, 1))

    def _write(self) -> None:
        (filling,) = self._fillings
        write_shard(filling.on_cpu(), self._folder / f"{self._written:05}.faiss")
        self._written += 1
        filling.begin_shard()

    def _recall(self, index: PatchIndex) -> float:
        """recall@10 on the queries, among the rows so far of other sources.

        A result that is as near as the exact tenth neighbour counts as a hit, so ties do not
        matter.
        """
        nearest = self._nearest.numpy()
        wanted = np.isfinite(nearest)
        tenth = np.where(wanted, nearest, np.inf).min(axis=1)
        hits = 0
        for query, source, least in zip(self._queries, self._query_sources, tenth, strict=True):
            allowed = np.repeat(self._sources != source, self._per_picture)[: self._seen]
            _, (rows,) = index.search(query[None], _NEIGHBOURS, allowed)
            vectors = self._take(np.sort(rows[rows >= 0]))
            hits += int((vectors @ query >= least - _EQUAL).sum())
        return float(hits / wanted.sum()) if wanted.any() else 1.0

    def finish(self) -> IndexReport:
        """Write the last shard after all rows were added, and measure recall@10 of the index.

        The number of visited lists is doubled until recall@10 against exact search reaches
        ``config.floor``. Raises `RecallTooLowError` when a search of all lists does not reach it.
        """
        floor = self._config.floor
        if len(self._fillings) > 1:
            self._decide()
        (filling,) = self._fillings
        if filling.shard.ntotal:
            self._write()
        lists = 0 if filling.kind == "Flat" else self._lists
        nprobe = min(NPROBE, lists)
        recall = self._recall(PatchIndex.load(self._folder, nprobe))
        while recall < floor and nprobe < lists:
            nprobe *= 2
            recall = self._recall(PatchIndex.load(self._folder, nprobe))
        if recall < floor:
            raise RecallTooLowError(
                f"the patch index {filling.kind} reaches recall@10 {recall:.3f}, below the floor "
                f"{floor}; lower build.recall_floor or index fewer patches"
            )
        tried = [trial._asdict() for trial in self._trials]
        return IndexReport(filling.kind, self._rows, nprobe, recall, floor, tried)


def _fills(gpu: int | None, kind: str, rows: int, dim: int) -> bool:
    """Whether shards of an index are filled on a GPU."""
    if gpu is None or not patch_index_gpu.is_supported(kind):
        return False
    return patch_index_gpu.has_room(kind, rows, dim, patch_index_gpu.free_bytes(gpu))


def write_shard(index: Any, path: Path) -> None:
    """Write one FAISS file."""
    faiss.write_index(index, str(path))

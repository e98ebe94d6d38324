"""The FAISS index of patches: centred, unit-norm site vectors under inner product (cosine)."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import faiss
import numpy as np
from jaxtyping import Bool, Float32, Int64, Integer
from numpy.typing import NDArray

from vision_sae.bundles import patch_index_gpu

REFINED = 40
"""The most candidates that are refined for each result, where the index has finer rows too."""
_CANDIDATES = 4000
"""Candidates of a query that are refined, within the bounds of 1 and `REFINED` for each result."""


class PatchIndex:
    """FAISS indexes of successive ranges of patches, searched as one index.

    All ranges have the same inverted lists and the same quantiser, and candidates for refinement
    are chosen over all ranges together, so results do not depend on the cut into ranges. Searches
    may run in parallel, because all parameters are passed with the call.

    After `use_gpu`, searches of all patches run on a GPU, one at a time. Searches among allowed
    patches stay on the CPU, because FAISS filters nothing on a GPU.
    """

    def __init__(self, shards: Sequence[Any], nprobe: int) -> None:
        self._shards, self._nprobe = tuple(shards), nprobe
        self._on_gpu: tuple[Any, ...] = ()
        self._gpu_turn = threading.Lock()
        self._starts = np.cumsum([0, *(shard.ntotal for shard in self._shards)])

    @classmethod
    def load(cls, folder: Path, nprobe: int) -> PatchIndex:
        """Map the files of ``folder`` read-only; ``nprobe`` is from the manifest's report."""
        shards = []
        for path in sorted(folder.glob("*.faiss")):
            shard = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
            if isinstance(shard, faiss.IndexIVF):  # maps rows to list entries, in 8 bytes a row
                shard.make_direct_map()
            shards.append(shard)
        return cls(shards, nprobe)

    def use_gpu(self, kind: str, device: str) -> bool:
        """Copy the index of the factory string ``kind`` to the GPU that torch calls ``device``.

        Returns whether it is there: FAISS must have that GPU, support the type, and have room.
        """
        gpu, dim = patch_index_gpu.gpu_of(device), self._shards[0].d
        if gpu is None or not patch_index_gpu.is_supported(kind):
            return False
        if not patch_index_gpu.has_room(kind, len(self), dim, patch_index_gpu.free_bytes(gpu)):
            return False
        self._on_gpu = tuple(patch_index_gpu.on_gpu(shard, gpu) for shard in self._shards)
        return True

    def __len__(self) -> int:
        """Number of patches."""
        return int(self._starts[-1])

    def search(
        self,
        queries: Float32[np.ndarray, "Q D"],
        k: int,
        allowed: Bool[np.ndarray, " N"] | None = None,
    ) -> tuple[Float32[np.ndarray, "Q k"], Int64[np.ndarray, "Q k"]]:
        """(cosines, rows) of the k nearest patches of each query, among the ``allowed`` patches.

        The fewer patches are allowed, the more lists are visited, so that as many allowed patches
        are compared as in a search of all patches. A row is -1 when the visited lists hold fewer
        than k allowed patches.
        """
        if allowed is None and self._on_gpu:
            with self._gpu_turn:
                results = [self._search(s, queries, k, self._nprobe, None) for s in self._on_gpu]
            return self._joined(results, k)
        share = 1.0 if allowed is None else float(allowed.mean())
        nprobe = int(self._nprobe / max(share, 1e-9))
        if len(self._shards) == 1:
            return self._search(self._shards[0], queries, k, nprobe, allowed)
        refined = isinstance(self._shards[0], faiss.IndexRefine)
        depth = round(k * _factor(k)) if refined else k
        results = [
            self._search(
                shard.base_index if refined else shard,
                queries,
                depth,
                nprobe,
                None if allowed is None else allowed[start:stop],
            )
            for shard, start, stop in self._ranges()
        ]
        cosines, rows = self._joined(results, depth)
        if not refined:
            return cosines, rows
        for of_query, query, places in zip(cosines, queries, rows, strict=True):
            of_query[:] = np.where(places < 0, -np.inf, self.vectors(places.clip(0)) @ query)
        return _best(cosines, rows, k)

    def _joined(
        self, results: Sequence[tuple[NDArray[np.float32], NDArray[np.int64]]], k: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The k best results over all ranges, with row numbers of the whole index."""
        cosines = np.concatenate([cosines for cosines, _ in results], axis=1)
        rows = np.concatenate(
            [
                np.where(rows < 0, -1, rows + start)
                for (_, rows), start in zip(results, self._starts[:-1], strict=True)
            ],
            axis=1,
        )
        return _best(cosines, rows, k)

    def vectors(self, rows: Integer[np.ndarray, " n"]) -> Float32[np.ndarray, "n D"]:
        """The vectors of rows as the index stores them, which may be quantised."""
        vectors = np.empty((len(rows), self._shards[0].d), dtype=np.float32)
        for shard, start, stop in self._ranges():
            here = (rows >= start) & (rows < stop)
            if here.any():
                vectors[here] = shard.reconstruct_batch((rows[here] - start).astype(np.int64))
        return vectors

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
        # FAISS keeps only the address of the bits, so the array must outlive the search.
        bits = None if allowed is None else np.packbits(allowed, bitorder="little")
        selector = None if bits is None else cast(Any, faiss.IDSelectorBitmap)(bits)
        if nprobe:
            ivf = shard if hasattr(shard, "nlist") else faiss.extract_index_ivf(shard)
            lists = ivf.nlist
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
    """The k rows of each query (Q, n) with the largest cosines, in descending order."""
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(cosines, order, 1), np.take_along_axis(rows, order, 1)


def _factor(k: int) -> float:
    """The number of candidates that are refined for each of k results."""
    return min(max(_CANDIDATES / k, 1), REFINED)

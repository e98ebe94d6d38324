"""The index of patches on a GPU: when FAISS has one that is used, and what reaches the disk.

A stand-in plays FAISS's GPUs: an index "on" one is a copy that counts what is asked of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from vision_sae.bundles import patch_index_builder, patch_index_gpu
from vision_sae.bundles.patch_index import PatchIndex
from vision_sae.bundles.patch_index_builder import IndexConfig, PatchIndexBuilder

GIB = 2**30


class OnGpu:
    """An index on a GPU that is not there."""

    def __init__(self, index: Any, gpu: int) -> None:
        self.index, self.gpu = index, gpu
        self.searches = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.index, name)

    def search(self, *args: Any, **options: Any) -> Any:
        self.searches += 1
        return self.index.search(*args, **options)


class Gpus:
    """FAISS's functions for GPUs, and what they were asked to do."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, *, free: int = 64 * GIB, lists: bool = False
    ) -> None:
        """With ``lists`` an exact index is what clusters, which FAISS itself must be given."""
        self.copied: list[OnGpu] = []
        self.clustered = 0
        self.temporary: set[int] = set()

        class Resources:
            def setTempMemory(_, size: int) -> None:  # FAISS's name
                self.temporary.add(size)

        class Options:
            useFloat16 = True  # FAISS's name

        def to_gpu(_resources: Any, gpu: int, index: Any, options: Any) -> Any:
            assert not options.useFloat16
            if lists and isinstance(index, faiss.IndexFlat):
                self.clustered += 1
                return faiss.clone_index(index)
            self.copied.append(OnGpu(faiss.clone_index(index), gpu))
            return self.copied[-1]

        fakes = {
            "StandardGpuResources": Resources,
            "GpuClonerOptions": Options,
            "get_num_gpus": lambda: 2,
            "index_cpu_to_gpu": to_gpu,
            "index_gpu_to_cpu": lambda on_gpu: on_gpu.index,
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(faiss, name, fake, raising=False)
        monkeypatch.setattr(patch_index_gpu, "free_bytes", lambda _gpu: free)


def unit_rows(count: int, dim: int) -> NDArray[np.float32]:
    rows = np.random.default_rng(0).standard_normal((count, dim)).astype(np.float32)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def built(folder: Path, rows: NDArray[np.float32], device: str, **options: Any) -> list[bytes]:
    """The files of an index."""
    sources = np.arange(len(rows))
    builder = PatchIndexBuilder(
        folder,
        rows.shape[1],
        len(rows),
        rows.__getitem__,
        sources,
        IndexConfig(0.0, **options),
        device=device,
    )
    builder.add(rows)
    builder.finish()
    return [path.read_bytes() for path in sorted(folder.glob("*.faiss"))]


def test_without_gpus_of_faiss_nothing_goes_to_one() -> None:
    """FAISS here is faiss-cpu."""
    assert patch_index_gpu.gpu_of("cuda:0") is None


def test_the_gpu_is_that_of_torch_where_faiss_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    Gpus(monkeypatch)
    devices = ("cpu", "mps", "cuda", "cuda:0", "cuda:1", "cuda:2")
    assert [patch_index_gpu.gpu_of(device) for device in devices] == [None, None, 0, 0, 1, None]


def test_types_that_faiss_has_on_gpus() -> None:
    kinds = ("Flat", "IVF1024,SQ8", "IVF2048,RaBitQfs,Refine(RR768,SQ8)")
    assert [patch_index_gpu.is_supported(kind) for kind in kinds] == [True, True, False]


def test_room_is_half_of_what_is_free() -> None:
    # 1 GiB of rows (253 float32 numbers and 12 bytes are 1,024 bytes) and 0.5 GiB for intermediate
    # results.
    assert patch_index_gpu.index_bytes("Flat", 2**20, 253) == GIB
    assert patch_index_gpu.has_room("Flat", 2**20, 253, 3 * GIB)
    assert not patch_index_gpu.has_room("Flat", 2**20, 253, 3 * GIB - 2)
    assert patch_index_gpu.index_bytes("IVF1024,SQ8", 2**20, 1012) == GIB


@pytest.mark.parametrize("kind", ["Flat", "IVF4,SQ8"])
def test_an_index_built_on_a_gpu_has_the_files_of_the_cpu(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patch_index_builder, "usual_type", lambda _rows, _dim: kind)
    rows = unit_rows(400, 16)
    expected = built(tmp_path / "cpu", rows, "cpu", shard_rows=150)
    gpus = Gpus(monkeypatch, lists=kind != "Flat")
    assert built(tmp_path / "gpu", rows, "cuda:0", shard_rows=150) == expected
    assert len(expected) == 3
    assert gpus.clustered == (kind != "Flat")
    assert gpus.temporary == {512 * 2**20}
    assert {copy.gpu for copy in gpus.copied} == {0}


@pytest.mark.parametrize(("free", "copies"), [(64 * GIB, True), (GIB, False)])
def test_shards_are_filled_on_a_gpu_with_room(
    free: int, copies: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus = Gpus(monkeypatch, free=free)
    built(tmp_path / "index", unit_rows(50, 8), "cuda:0")
    assert bool(gpus.copied) == copies


def test_searches_of_all_patches_run_on_the_gpu_and_filtered_ones_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = unit_rows(300, 8)
    built(tmp_path / "index", rows, "cpu", shard_rows=200)
    index = PatchIndex.load(tmp_path / "index", 0)
    expected = index.search(rows[:3], 5)
    gpus = Gpus(monkeypatch)
    assert index.use_gpu("Flat", "cuda:1")
    cosines, found = index.search(rows[:3], 5)
    assert np.array_equal(found, expected[1])
    np.testing.assert_array_equal(cosines, expected[0])
    assert [copy.searches for copy in gpus.copied] == [1, 1]
    index.search(rows[:3], 5, np.arange(300) % 2 == 0)
    assert [copy.searches for copy in gpus.copied] == [1, 1]


@pytest.mark.parametrize(
    ("kind", "device", "free"),
    [
        ("Flat", "cpu", 64 * GIB),
        ("Flat", "cuda:7", 64 * GIB),
        ("Flat", "cuda:0", GIB // 2),
        ("IVF2048,RaBitQfs,Refine(RR768,SQ8)", "cuda:0", 64 * GIB),
    ],
)
def test_an_index_stays_on_the_cpu(
    kind: str, device: str, free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built(tmp_path / "index", unit_rows(30, 8), "cpu")
    index, gpus = PatchIndex.load(tmp_path / "index", 0), Gpus(monkeypatch, free=free)
    assert not index.use_gpu(kind, device)
    assert gpus.copied == []

"""Reading a store takes the memory it was given, whatever the store's size."""

from __future__ import annotations

import multiprocessing
from itertools import islice
from pathlib import Path

import numpy as np

from tests.worlds.tiny import GRID, write_store
from vision_sae.activations.store import ActivationStore
from vision_sae.dictionaries.stream import ShuffledRows

DIM, BATCH, ALLOWED_MB = 1024, 256, 16


def own_megabytes() -> float:
    """Memory of this process that is not mapped from a file."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


def growth(small: Path, large: Path) -> float:
    """Megabytes that two epochs over ``large`` add, once ``small`` has woken everything up."""

    def batches(path: Path, epochs: int, shuffle_mb: int) -> None:
        nonlocal highest
        store = ActivationStore(path)
        stream = ShuffledRows(store, store.site(None), BATCH, shuffle_mb=shuffle_mb, seed=0)
        for batch in islice(stream.batches(), epochs * store.rows // BATCH):
            assert batch.shape == (BATCH, DIM)
            highest = max(highest, own_megabytes())

    highest = 0.0
    batches(small, 2, 1)
    before, highest = own_megabytes(), 0.0
    batches(large, 2, ALLOWED_MB)
    return highest - before


def test_a_store_ten_times_larger_than_the_loaders_memory_is_read_within_it(
    tmp_path: Path,
) -> None:
    images = 10 * ALLOWED_MB * 2**20 // (GRID.patches * DIM * 2)
    vectors = np.zeros((images, GRID.patches, DIM), dtype=np.float16)
    write_store(tmp_path / "large", np.array_split(vectors, 5))
    write_store(tmp_path / "small", [vectors[:256]])
    with multiprocessing.get_context("spawn").Pool(1) as fresh:  # what others left is not counted
        grown = fresh.apply(growth, (tmp_path / "small", tmp_path / "large"))
    # A buffer in use, one being filled, one in between; the allocator keeps some that is freed.
    assert grown < 3 * ALLOWED_MB

"""Reading a store takes the memory it was given, whatever the store's size."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np

from tests.worlds import GRID, write_store
from vision_sae.dictionaries.stream import ShuffledRows

DIM, ALLOWED_MB = 256, 8


def own_megabytes() -> float:
    """Memory of this process that is not mapped from a file."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


def test_a_store_ten_times_larger_than_the_loaders_memory_is_read_within_it(
    tmp_path: Path,
) -> None:
    small = write_store(tmp_path / "small", [np.zeros((512, GRID.patches, DIM), dtype=np.float16)])
    warm = ShuffledRows(small, small.site(None), 1024, shuffle_mb=1, seed=0)
    assert len(list(islice(warm.batches(), 4))) == 4  # torch is loaded in part on first use
    images = 10 * ALLOWED_MB * 2**20 // (GRID.patches * DIM * 2)
    vectors = np.zeros((images, GRID.patches, DIM), dtype=np.float16)
    vectors[:] = np.arange(images, dtype=np.float16)[:, None, None] % 100
    store = write_store(tmp_path / "store", np.array_split(vectors, 5))
    del vectors
    stream = ShuffledRows(store, store.site(None), 1024, shuffle_mb=ALLOWED_MB, seed=0)
    epoch = store.rows // 1024
    before, highest = own_megabytes(), 0.0
    for batch in islice(stream.batches(), 2 * epoch):
        assert batch.shape == (1024, DIM)
        highest = max(highest, own_megabytes())
    assert highest - before < 2 * ALLOWED_MB

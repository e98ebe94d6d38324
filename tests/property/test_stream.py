from __future__ import annotations

import tempfile
from itertools import islice
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.dictionaries.test_stream import numbered
from tests.worlds.tiny import SITE
from vision_sae.dictionaries.stream import ShuffledRows

SHARDS = st.lists(st.integers(1, 30), min_size=1, max_size=5)
BATCH = st.integers(1, 40)


def stream_of(folder: str, shards: list[int], batch_size: int, dim: int = 64) -> ShuffledRows:
    batch_size = min(batch_size, 4 * sum(shards))
    store = numbered(Path(folder) / "s", shards, dim)
    return ShuffledRows(store, SITE, batch_size, shuffle_mb=1, seed=1)


@settings(max_examples=25, deadline=None)
@given(SHARDS, BATCH, st.integers(0, 60))
def test_starting_at_a_step_equals_skipping_to_it(
    shards: list[int], batch_size: int, step: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        stream = stream_of(folder, shards, batch_size)
        skipped = list(islice(stream.batches(), step, step + 3))
        started = list(islice(stream.batches(step), 3))
    assert all(torch.equal(a, b) for a, b in zip(skipped, started, strict=True))


@settings(max_examples=25, deadline=None)
@given(SHARDS, BATCH)
def test_an_epoch_visits_rows_at_most_once_and_all_but_a_part_of_a_batch(
    shards: list[int], batch_size: int
) -> None:
    rows = 4 * sum(shards)
    batch_size = min(batch_size, rows)
    with tempfile.TemporaryDirectory() as folder:
        stream = stream_of(folder, shards, batch_size)
        steps = rows // batch_size  # the store fits one buffer
        seen = [int(v) for b in islice(stream.batches(), steps) for v in b[:, 0]]
    assert len(seen) == len(set(seen)) == steps * batch_size > rows - batch_size


@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=5, max_size=9), st.integers(1, 20))
def test_an_epoch_of_many_buffers_still_visits_nearly_all(
    shards: list[int], batch_size: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        stream = stream_of(folder, shards, batch_size, dim=1024)  # buffers of 256 rows
        buffers = stream._epoch(0)
        steps = sum(stream._batches_in(blocks) for blocks, _ in buffers)
        seen = [int(v) for b in islice(stream.batches(), steps) for v in b[:, 0]]
    assert len(seen) == len(set(seen))
    assert len(seen) > 4 * sum(shards) - len(buffers) * batch_size

"""Rows are numbered by their only value, so that a batch says which rows it holds."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.worlds.tiny import SITE, write_store
from vision_sae.activations.store import ActivationStore
from vision_sae.dictionaries.stream import ShuffledRows
from vision_sae.errors import InvalidInputError


def numbered(directory: Path, images_per_shard: list[int], dim: int = 1) -> ActivationStore:
    """A store whose row number r (4 a image) holds the value r in all dimensions."""
    total = 4 * sum(images_per_shard)
    rows = np.repeat(np.arange(total, dtype=np.float32)[:, None], dim, 1).reshape(-1, 4, dim)
    shards = np.split(rows, np.cumsum(images_per_shard)[:-1])
    return write_store(directory, shards)


def take(stream: ShuffledRows, batches: int, step: int = 0) -> list[list[int]]:
    return [batch[:, 0].int().tolist() for batch in islice(stream.batches(step), batches)]


def test_an_epoch_visits_every_row_once_when_batches_fit(tmp_path: Path) -> None:
    stream = ShuffledRows(numbered(tmp_path / "s", [10, 10]), SITE, 8, shuffle_mb=1, seed=0)
    epoch = [row for batch in take(stream, 10) for row in batch]
    assert sorted(epoch) == list(range(80))


def test_the_next_epoch_has_another_order(tmp_path: Path) -> None:
    stream = ShuffledRows(numbered(tmp_path / "s", [20]), SITE, 8, shuffle_mb=1, seed=0)
    batches = take(stream, 20)
    assert batches[:10] != batches[10:]
    assert sorted(sum(batches[10:], [])) == list(range(80))


def test_order_is_shuffled_within_and_between_images(tmp_path: Path) -> None:
    stream = ShuffledRows(numbered(tmp_path / "s", [20]), SITE, 80, shuffle_mb=1, seed=0)
    (batch,) = take(stream, 1)
    neighbours = np.abs(np.diff(batch)) == 1
    assert neighbours.mean() < 0.2


def test_same_seed_same_batches(tmp_path: Path) -> None:
    store = numbered(tmp_path / "s", [9, 4])
    a, b = (ShuffledRows(store, SITE, 8, shuffle_mb=1, seed=5) for _ in range(2))
    assert take(a, 20) == take(b, 20)


def test_another_seed_gives_other_batches(tmp_path: Path) -> None:
    store = numbered(tmp_path / "s", [9, 4])
    a, b = (ShuffledRows(store, SITE, 8, shuffle_mb=1, seed=seed) for seed in (5, 6))
    assert take(a, 5) != take(b, 5)


def test_batches_are_float32_and_full(tmp_path: Path) -> None:
    stream = ShuffledRows(numbered(tmp_path / "s", [9, 4], 3), SITE, 7, shuffle_mb=1, seed=0)
    batches = list(islice(stream.batches(), 30))
    assert {(tuple(b.shape), b.dtype) for b in batches} == {((7, 3), torch.float32)}


def test_two_buffers_fit_the_memory_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 600 images of 4 rows of 1,024 float16 = 4.7 MB: with 1 MB a buffer holds 256 rows at most.
    store = numbered(tmp_path / "s", [300, 300], 1024)
    stream = ShuffledRows(store, SITE, 16, shuffle_mb=1, seed=0)
    load, sizes = stream._load, []
    monkeypatch.setattr(stream, "_load", lambda b: sizes.append(load(b).nbytes) or load(b))
    take(stream, 100)
    assert max(sizes) <= 2**20 / 2


def test_shards_of_single_images_fill_a_batch(tmp_path: Path) -> None:
    # Blocks end with their shard; counted by blocks, no buffer would ever hold a batch.
    store = numbered(tmp_path / "s", [1] * 60, 1024)
    stream = ShuffledRows(store, SITE, 200, shuffle_mb=1, seed=0)
    assert [len(batch) for batch in take(stream, 3)] == [200, 200, 200]


def test_store_smaller_than_a_batch_is_refused_and_told_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="12 patches.*lower --batch-size"):
        ShuffledRows(numbered(tmp_path / "s", [3]), SITE, 13, shuffle_mb=1, seed=0)

"""Shuffled batches from an ActivationStore, in bounded memory and the same order every time.

Each epoch visits blocks of rows in a random order, fills a buffer with whole blocks, shuffles the
buffer's rows and cuts it into batches, while a thread fills the next buffer. The order depends
only on (seed, epoch), so the stream can start at any step without reading the steps before it.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from vision_sae.activations.store import ActivationStore
from vision_sae.errors import InvalidInputError

_BLOCK_IMAGES = 8
"""Images read together: large enough for sequential reads, small enough to mix."""

_Block: TypeAlias = tuple[int, int, int]
"""(shard, first row, last row + 1)"""


def _rows(blocks: list[_Block]) -> int:
    return sum(stop - start for _, start, stop in blocks)


class ShuffledRows:
    """An endless sequence of shuffled batches (batch_size, D), float32."""

    def __init__(
        self, store: ActivationStore, site: str, batch_size: int, *, shuffle_mb: int, seed: int
    ) -> None:
        if store.rows < batch_size:
            raise InvalidInputError(
                f"the store has {store.rows} patches, fewer than one batch of {batch_size}; "
                "harvest more pictures or lower --batch-size",
                field="batch_size",
            )
        self._store, self._site = store, site
        self._arrays = [array.flatten(0, 1) for array in store.arrays(site)]
        self._batch_size = batch_size
        self._seed = seed
        block = _BLOCK_IMAGES * store.grid.patches
        self._blocks = [
            (shard, start, min(start + block, len(array)))
            for shard, array in enumerate(self._arrays)
            for start in range(0, len(array), block)
        ]
        row_bytes = self._arrays[0].shape[1] * self._arrays[0].element_size()
        # Two buffers exist at a time: the current one, and the next one being filled.
        self._buffer_rows = max(shuffle_mb * 2**20 // (2 * row_bytes), batch_size + block)

    def _epoch(self, epoch: int) -> list[tuple[list[_Block], int]]:
        """The buffers of an epoch: (blocks, seed of the row shuffle) each."""
        random = np.random.default_rng([self._seed, epoch])
        groups: list[list[_Block]] = [[]]
        filled = 0
        for i in random.permutation(len(self._blocks)):
            block, rows = self._blocks[i], _rows([self._blocks[i]])
            # Count rows, not blocks: the last block of a shard is short.
            if filled + rows > self._buffer_rows:
                groups.append([])
                filled = 0
            groups[-1].append(block)
            filled += rows
        return [(group, int(random.integers(2**62))) for group in groups]

    def _batches_in(self, blocks: list[_Block]) -> int:
        return _rows(blocks) // self._batch_size

    def _load(self, blocks: list[_Block]) -> Tensor:
        return torch.cat([self._arrays[shard][start:stop] for shard, start, stop in blocks])

    def _buffers(self, step: int) -> Iterator[tuple[list[_Block], int, int]]:
        """The endless buffers from ``step`` on: (blocks, seed, batches to skip) each."""
        epoch = 0
        while True:
            for blocks, seed in self._epoch(epoch):
                count = self._batches_in(blocks)
                if step < count:
                    yield blocks, seed, step
                step = max(0, step - count)
            epoch += 1

    def batches(self, step: int = 0) -> Generator[Tensor]:
        """The endless batches (batch_size, D) from ``step`` on."""
        with ThreadPoolExecutor(1) as reader:
            buffers = self._buffers(step)
            blocks, seed, skip = next(buffers)
            loading = reader.submit(self._load, blocks)
            while True:
                rows = loading.result()
                following = next(buffers)
                loading = reader.submit(self._load, following[0])
                generator = torch.Generator().manual_seed(seed)
                order = torch.randperm(len(rows), generator=generator)
                for chosen in order.split(self._batch_size)[skip:]:
                    if len(chosen) == self._batch_size:
                        yield self._store.checked(self._site, rows[chosen])
                _, seed, skip = following

"""Batches on the device that trains, the next one sent while the current one is used."""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor


def on_device(batches: Generator[Tensor], device: str) -> Generator[Tensor]:
    """The endless ``batches`` (N, D), on ``device``, in their order; closes them at its end.

    On a CUDA GPU (not yet run there) a thread reads the next batch into pinned memory and copies
    it on a stream of its own, so that neither the host nor the GPU waits for it.
    """
    try:
        if device.startswith("cuda"):
            yield from _ahead(batches, torch.device(device))
        else:
            for batch in batches:
                yield batch.to(device)
    finally:
        batches.close()


def _ahead(batches: Generator[Tensor], device: torch.device) -> Generator[Tensor]:
    copying = torch.cuda.Stream(device)

    def send() -> tuple[Tensor, torch.cuda.Event]:
        """The next batch on its way, and the event of its arrival."""
        batch = next(batches).pin_memory()
        with torch.cuda.stream(copying):
            return batch.to(device, non_blocking=True), copying.record_event()

    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(send)
        while True:
            batch, arrived = coming.result()
            coming = reader.submit(send)
            computing = torch.cuda.current_stream(device)
            computing.wait_event(arrived)
            batch.record_stream(computing)  # its memory is not free before it has been used
            yield batch

"""Several processes that train one dictionary: ``torchrun --nproc-per-node 2 ...``.

Each process encodes its share of a batch's rows; the sparse codes and errors of all shares, which
are small beside gradients of shape (F, D), are gathered, and every process takes the same
optimiser step. So the weights stay equal without ever being sent, and equal those of one process.
"""

from __future__ import annotations

import atexit
import itertools
import os
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class Group(NamedTuple):
    """This process among those that train together."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes the files and shows the progress."""
        return self.rank == 0

    def share(self, rows: Tensor) -> Tensor:
        """This process' rows of a batch (N, ...); shares differ by a row at most."""
        n = len(rows)
        return rows[n * self.rank // self.size : n * (self.rank + 1) // self.size]

    def gather(self, part: Tensor, total: int, dim: int = 0) -> Tensor:
        """The whole batch (``total`` rows along ``dim``) from every process' share of it."""
        if self.size == 1:
            return part
        cuts = [total * i // self.size for i in range(self.size + 1)]
        moved = part.movedim(dim, 0)
        longest = max(b - a for a, b in itertools.pairwise(cuts))
        padded = moved.new_zeros((longest, *moved.shape[1:]))
        padded[: len(moved)] = moved
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        kept = [p[: cuts[i + 1] - cuts[i]] for i, p in enumerate(parts)]
        return torch.cat(kept).movedim(0, dim)

    def wait(self) -> None:
        """Wait until every process has come here."""
        if self.size > 1:
            dist.barrier()


def join_group(device: str = "cpu") -> Group:
    """Join the processes that torchrun started; a group of one without it.

    gloo on CPUs, NCCL on GPUs (not yet run on a GPU). A process joins once and leaves when it ends:
    with the group's threads alive its end would now and then be an abort.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Group()
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
        atexit.register(_leave_group)
    return Group(dist.get_rank(), dist.get_world_size())


def _leave_group() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()

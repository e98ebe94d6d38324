"""Several processes that train one dictionary: ``torchrun --nproc-per-node 2 ...``.

Each process encodes its share of a batch's rows. The processes then gather the sparse codes and the
errors, which are small compared with gradients of shape (F, D), and all take the same optimiser
step. So no process sends weights, and all have the weights that a single process would have.
"""

from __future__ import annotations

import atexit
import itertools
import os
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from vision_sae.errors import InvalidInputError


class Group(NamedTuple):
    """The place of this process among the processes that train together."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes the files and shows the progress."""
        return self.rank == 0

    def share(self, rows: Tensor) -> Tensor:
        """This process' rows of a batch (N, ...); shares differ by at most one row."""
        n = len(rows)
        return rows[n * self.rank // self.size : n * (self.rank + 1) // self.size]

    def gather(self, part: Tensor, total: int, dim: int = 0) -> Tensor:
        """The whole batch, of ``total`` rows along ``dim``, from the shares of all processes."""
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
        """Wait until every process has called `wait`."""
        if self.size > 1:
            dist.barrier()


def join_group() -> Group:
    """Join the processes that torchrun started; without torchrun, a group of one process.

    Tensors in host memory travel by gloo, those of GPUs by NCCL (not yet run on a GPU;
    ``pytest tests/gpu`` would on a machine with two). A process joins once, and leaves when it
    ends: a process that ends with the group's threads alive sometimes aborts.
    """
    if _processes() == 1:
        return Group()
    if not dist.is_initialized():
        if _local_rank() < torch.cuda.device_count():
            torch.cuda.set_device(_local_rank())  # NCCL sends from the current GPU
            dist.init_process_group("cpu:gloo,cuda:nccl")
        else:
            dist.init_process_group("gloo")
        atexit.register(_leave_group)
    return Group(dist.get_rank(), dist.get_world_size())


def own_device(device: str) -> str:
    """``device``, or under torchrun the GPU of this process in place of any GPU.

    Every process of a machine trains on a GPU of its own, the one of its local rank.
    ``CUDA_VISIBLE_DEVICES`` chooses the GPUs. Raises `InvalidInputError` if they are too few.
    """
    if _processes() == 1 or not device.startswith("cuda"):
        return device
    if _local_rank() >= (count := torch.cuda.device_count()):
        raise InvalidInputError(
            f"process {_local_rank()} of this machine has no GPU of its own: there are {count}; "
            "start fewer processes (--nproc-per-node), or choose --device cpu",
            field="device",
        )
    return f"cuda:{_local_rank()}"


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _local_rank() -> int:
    """The number of this process among those of this machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def _leave_group() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()

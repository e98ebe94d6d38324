"""Which kernels take the sparse steps of a training: measured once, on its own shapes.

On a CPU these are the compiled loops. On a CUDA GPU the Triton kernels and torch's operations race
(not yet run on a GPU). Both compute the same numbers up to rounding; a training on a GPU is
therefore repeatable to the bit only with the same choice, which the log tells.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from importlib.util import find_spec

import torch
import torch.distributed as dist

from vision_sae.dictionaries.training.distributed import Group
from vision_sae.dictionaries.training.sparse import Adam, Kernels, Weights
from vision_sae.dictionaries.training.sparse_torch import TorchKernels

_LOG = logging.getLogger(__name__)
_TIMED = 3
"""Timed steps, of which the fastest counts; two steps before them compile and warm up."""
_choices: dict[tuple[object, ...], bool] = {}
"""{(device, shapes): whether Triton was faster}, of this process."""


def kernels_for(weights: Weights, *, rows: int, k: int, group: Group) -> Kernels:
    """The fastest kernels for these weights, batches of ``rows`` rows and k features a row.

    All processes of ``group`` get the same kernels: otherwise their weights, which no process
    sends, would drift apart by rounding.
    """
    if weights.w_enc.device.type == "cpu":
        from vision_sae.dictionaries.training.sparse_cpu import CpuKernels

        return CpuKernels(weights)
    if not triton_runs(weights):
        return TorchKernels(weights)
    from vision_sae.dictionaries.training.sparse_triton import TritonKernels

    device = weights.w_enc.device
    case = (torch.cuda.get_device_name(device), *weights.w_enc.shape, rows, k, group.size)
    if case not in _choices:
        faster = triton_is_faster(weights, rows=-(-rows // group.size), k=k)
        if group.size > 1:
            decided = torch.tensor(float(faster), device=device)
            dist.broadcast(decided, 0)
            faster = bool(decided)
        _choices[case] = faster
    return TritonKernels(weights) if _choices[case] else TorchKernels(weights)


def triton_runs(weights: Weights) -> bool:
    """Whether the Triton kernels can run where these weights are."""
    if weights.w_enc.device.type != "cuda" or not torch.cuda.is_available():
        return False
    if find_spec("triton") is None:  # it exists for Linux alone
        return False
    from vision_sae.dictionaries.kernels_triton_update import WIDEST

    return weights.w_enc.shape[1] <= WIDEST


def triton_is_faster(weights: Weights, *, rows: int, k: int) -> bool:
    """Whether a step in Triton takes less time than a step in torch; the weights stay.

    False, with a warning in the log, if Triton fails on this GPU.
    """
    from vision_sae.dictionaries.training.sparse_triton import TritonKernels

    torch_seconds = step_seconds(TorchKernels, weights, rows=rows, k=k)
    try:
        triton_seconds = step_seconds(TritonKernels, weights, rows=rows, k=k)
    except Exception as error:  # a compiler's errors are of many kinds, and torch can do the work
        _LOG.warning("Triton fails on this GPU, so torch's operations train: %s", error)
        return False
    faster = triton_seconds < torch_seconds
    _LOG.info(
        "a training step takes %.2f ms in Triton and %.2f ms in torch; %s trains",
        1e3 * triton_seconds,
        1e3 * torch_seconds,
        "Triton" if faster else "torch",
    )
    return faster


def step_seconds(
    make: Callable[[Weights], Kernels], weights: Weights, *, rows: int, k: int
) -> float:
    """Seconds of a step on random rows and a copy of the weights."""
    device, (width, dim) = weights.w_enc.device, weights.w_enc.shape
    kernels = make(Weights(*(t.clone() for t in weights)))
    generator = torch.Generator(device).manual_seed(0)
    z = torch.randn(rows, dim, generator=generator, device=device) / dim**0.5
    best = float("inf")
    for number in range(2 + _TIMED):
        _wait(device)
        begin = time.perf_counter()
        forward = kernels.finish(kernels.choose(z, k, None), (width,), 2 / rows)
        kernels.update(forward, (width,), Adam(0.0, 1.0), None, None)
        _wait(device)
        if number >= 2:
            best = min(best, time.perf_counter() - begin)
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

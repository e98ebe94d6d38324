"""Which kernels take the sparse steps of a training: measured once, on its own shapes.

On a CPU these are the compiled loops, which choose features by the `Shortlist` or by a product:
whichever is faster on this machine. On a CUDA GPU the Triton kernels and torch's operations race
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

from vision_sae import machine
from vision_sae.devices import requested_dtype
from vision_sae.dictionaries import shortlist
from vision_sae.dictionaries.training.distributed import Group
from vision_sae.dictionaries.training.sparse import Adam, Kernels, Weights
from vision_sae.dictionaries.training.sparse_torch import TorchKernels
from vision_sae.models.precision import training_dtype

_LOG = logging.getLogger(__name__)
_TIMED = 3
"""Timed steps, of which the fastest counts; two steps before them compile and warm up."""
_SHAPE = (1024, 384, 6144, 32)
"""Rows, dimensions, features and k of the measurement on a CPU."""
_GAIN = 1.5
"""How much faster a product must be than the shortlist, which is exact."""
_choices: dict[tuple[object, ...], bool] = {}
"""{(device, shapes): whether Triton was faster}, of this process."""


def kernels_for(weights: Weights, *, rows: int, k: int, group: Group) -> Kernels:
    """The fastest kernels for these weights, batches of ``rows`` rows and k features a row.

    All processes of ``group`` get the same kernels: otherwise their weights, which no process
    sends, would drift apart by rounding.
    """
    if weights.w_enc.device.type == "cpu":
        from vision_sae.dictionaries.training.sparse_cpu import CpuKernels

        return CpuKernels(weights, dtype=_agreed(choosing_dtype(), group))
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


def _agreed(dtype: torch.dtype | None, group: Group) -> torch.dtype | None:
    """What the first process of ``group`` chose."""
    if group.size == 1:
        return dtype
    ways = (None, torch.bfloat16, torch.float32)
    number = torch.tensor(ways.index(dtype))
    dist.broadcast(number, 0)
    return ways[int(number)]


def choosing_dtype() -> torch.dtype | None:
    """The precision of the product that chooses features on this CPU; None for the `Shortlist`.

    Of the shortlist and the products, the fastest on `_SHAPE` is taken. A process that is set to a
    precision keeps it: the shortlist chooses as float32 does.
    """
    wanted = requested_dtype()
    if wanted == "bfloat16" or not shortlist.is_available():
        return training_dtype("cpu")
    if wanted == "float32":
        return None
    training_dtype("cpu")  # refuses float16

    def seconds(dtype: torch.dtype | None) -> Callable[[], float]:
        return lambda: _choosing_seconds(dtype)

    ways = {"shortlist": None, "bfloat16": torch.bfloat16, "float32": torch.float32}
    return ways[
        machine.fastest(
            "choosing features",
            {name: seconds(dtype) for name, dtype in ways.items()},
            usual="shortlist",
            gain=_GAIN,
        )
    ]


def _choosing_seconds(dtype: torch.dtype | None) -> float:
    """Seconds of choosing features for random rows."""
    from vision_sae.dictionaries.training.sparse_cpu import CpuKernels

    rows, dim, width, k = _SHAPE
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(width, dim, generator=generator) / dim**0.5
    parameters = directions, torch.zeros(width), directions, torch.zeros(dim)
    kernels = CpuKernels(
        Weights(*parameters, *(t for t in parameters for _ in range(2))), dtype=dtype
    )
    z = torch.randn(rows, dim, generator=generator)
    return min(_seconds(lambda: kernels.choose(z, k, None)) for _ in range(1 + _TIMED))


def _seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


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

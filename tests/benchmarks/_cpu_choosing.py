"""Choosing the k largest pre-activations of a batch on a CPU, beside the dense product alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vision_sae.dictionaries.kinds.topk import TopKSae
from vision_sae.dictionaries.sae import Sae
from vision_sae.dictionaries.training.sparse import Kernels, Weights
from vision_sae.dictionaries.training.sparse_cpu import CpuKernels

WIDTHS = (6144, 24_576)
_K, _ROUNDS = 32, 7


def choosing(rows: Tensor, width: int) -> dict[str, float]:
    """Milliseconds of choosing for ``rows`` (N, D), of a float32 product in one piece, and the rows
    whose features differ from those of that product."""
    dim = rows.shape[1]
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(width, dim, generator=generator), dim=1)
    parameters = directions, torch.zeros(width), directions, torch.zeros(dim)
    weights = Weights(*parameters, *(t for t in parameters for _ in range(2)))
    kernels: Kernels = CpuKernels(weights, dtype=None)
    chosen = kernels.choose(rows, _K, None)
    largest = (rows @ directions.T).topk(_K, dim=1).indices.sort(dim=1).values
    out = torch.empty(len(rows), width)
    return {
        "product_ms": milliseconds(lambda: torch.mm(rows, directions.T, out=out)),
        "choose_ms": milliseconds(lambda: kernels.choose(rows, _K, None)),
        "rows_differing": int((chosen.features != largest).any(1).sum()),
    }


def encoding(rows: Tensor, width: int) -> dict[str, float]:
    """Rows that a TopK dictionary encodes in a second, and the ratio to a dense product with
    torch's top-k."""
    dim = rows.shape[1]
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(width, dim, generator=generator), dim=1)
    sae = TopKSae(
        k=_K, w_enc=directions, b_enc=torch.zeros(width), w_dec=directions, b_dec=torch.zeros(dim)
    )
    ours = milliseconds(lambda: sae.encode(rows))
    dense = milliseconds(lambda: Sae.encode(sae, rows))
    return {
        "rows_per_s": round(1e3 * len(rows) / ours, 1),
        "ratio_to_dense": round(dense / ours, 2),
    }


def milliseconds(work: Callable[[], Any]) -> float:
    """The median of a few times, after a first one."""
    times = []
    for _ in range(1 + _ROUNDS):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return round(1e3 * sorted(times[1:])[_ROUNDS // 2], 2)

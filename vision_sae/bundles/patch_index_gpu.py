"""FAISS indexes on a GPU. faiss-gpu has the functions for it; faiss-cpu lacks all of them.

An index on a GPU is a copy: it is built or searched there, and what is written to disk is always
an index of the CPU, so that a bundle opens on every machine. Not yet run on a GPU; `make test-gpu`
does it where faiss-gpu is installed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import faiss

_FAISS = cast(Any, faiss)
_TEMPORARY_BYTES = 512 * 2**20
"""The memory that FAISS takes on a GPU for intermediate results; its own choice is 1.5 GiB, which
the models of a server lack."""
_ROW_BYTES = 12
"""Bytes of a row beside its numbers: its number in 8 bytes, and the slack of growing lists."""
_USABLE = 0.5
"""Share of a GPU's free memory that an index may take; models need the rest."""


def gpu_of(device: str) -> int | None:
    """The number of the GPU that FAISS uses for a device of torch, such as ``cuda:1``; None where
    FAISS has no such GPU."""
    kind, _, number = device.partition(":")
    if kind != "cuda" or not hasattr(faiss, "StandardGpuResources"):
        return None
    gpu = int(number or 0)
    return gpu if gpu < _FAISS.get_num_gpus() else None


def is_supported(kind: str) -> bool:
    """Whether FAISS can hold an index of this factory string on a GPU: exact ones and those of 8
    bits can be; the coarse codes of indexes with refinement cannot."""
    return kind == "Flat" or kind.endswith(",SQ8")


def index_bytes(kind: str, rows: int, dim: int) -> int:
    """The bytes of a GPU that an index of ``rows`` rows takes."""
    return rows * (dim * (4 if kind == "Flat" else 1) + _ROW_BYTES)


def has_room(kind: str, rows: int, dim: int, free: int) -> bool:
    """Whether an index and FAISS's intermediate results fit into ``free`` bytes of a GPU."""
    return index_bytes(kind, rows, dim) + _TEMPORARY_BYTES <= _USABLE * free


def free_bytes(gpu: int) -> int:
    """The bytes that are free on a GPU."""
    import torch

    return int(torch.cuda.mem_get_info(gpu)[0])


def on_gpu(index: Any, gpu: int) -> Any:
    """A copy of an index on a GPU."""
    resources = _FAISS.StandardGpuResources()
    resources.setTempMemory(_TEMPORARY_BYTES)
    options = _FAISS.GpuClonerOptions()
    options.useFloat16 = False  # rows keep the bits that they have on the CPU
    return _FAISS.index_cpu_to_gpu(resources, gpu, index, options)


def on_cpu(index: Any) -> Any:
    """A copy of an index of a GPU that can be written to disk."""
    return _FAISS.index_gpu_to_cpu(index)


@contextmanager
def clustered_on(ivf: Any, gpu: int | None) -> Iterator[None]:
    """Train the lists of ``ivf`` on a GPU in the body; the index itself stays on the CPU."""
    if gpu is None:
        yield
        return
    ivf.clustering_index = on_gpu(faiss.IndexFlat(ivf.d, ivf.metric_type), gpu)
    try:
        yield
    finally:
        ivf.clustering_index = None

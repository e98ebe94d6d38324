"""Tests of this folder need a CUDA GPU: ``make test-gpu`` runs them, ``make test`` does not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def exact_gpu() -> Iterator[None]:
    """Skip without a GPU; compare with the CPU in float32, without TF32."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU that torch can use; this machine has none")
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@contextmanager
def no_waiting() -> Iterator[None]:
    """Within the body every operation that waits for the GPU raises."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def without_waiting() -> object:
    """`no_waiting`: a context manager for the body that must not wait."""
    return no_waiting

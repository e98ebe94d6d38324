"""What tests of foreign checkpoints share: random weights, inputs, and dense reconstructions."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vision_sae.dictionaries.interop.formats import import_sae
from vision_sae.dictionaries.protocol import Dictionary

DIM, WIDTH, K = 5, 12, 3


class Random(NamedTuple):
    """Weights of no special structure: nothing is zero, unit, tied or symmetric."""

    W_enc: Tensor
    """(D, F)"""
    b_enc: Tensor
    W_dec: Tensor
    """(F, D)"""
    b_dec: Tensor
    x: Tensor
    """Inputs (N, D), far from zero mean."""


def random_weights(seed: int = 0) -> Random:
    """Weights and inputs from a seed."""
    g = torch.Generator().manual_seed(seed)
    shapes = ((DIM, WIDTH), (WIDTH,), (WIDTH, DIM), (DIM,), (40, DIM))
    w = Random(*(torch.randn(shape, generator=g) for shape in shapes))
    return w._replace(x=w.x * 2 + 3)


def vector(seed: int = 1) -> Tensor:
    """A further tensor (F)."""
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))


def top_k(pre: Tensor, k: int = K) -> Tensor:
    """Dense TopK: the k largest entries of each row, as far as they are positive."""
    return pre.relu() * (pre >= pre.topk(k, dim=1).values[:, -1:])


def reconstruct(dictionary: Dictionary, x: Tensor) -> Tensor:
    """Encode and decode."""
    return dictionary.decode(dictionary.encode(x))


def check(path: Path, x: Tensor, expected: Tensor, **options: Any) -> Dictionary:
    """Import a checkpoint and compare its reconstructions with ``expected`` (N, D)."""
    dictionary, _ = import_sae(path, **options)
    torch.testing.assert_close(reconstruct(dictionary, x), expected, atol=1e-5, rtol=1e-5)
    assert expected.std() > 0.1, "a reconstruction that hardly varies would hide mistakes"
    return dictionary

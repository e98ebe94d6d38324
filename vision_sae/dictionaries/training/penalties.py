"""Penalties on decoder rows that compose with every architecture.

Each returns the gradient by the decoder (F, D) of a term added to the loss. Rows have unit norm,
so a cosine is a dot product; the radial part of the gradient is dropped by the learner.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vision_sae.models.precision import fastest_dtype

_CHUNK = 1024
"""Features compared with each other in a step: the cost is linear in F."""


def _cosines(a: Tensor, b: Tensor) -> Tensor:
    """Dot products (A, B) in the fastest precision: they only choose the nearest row."""
    dtype = fastest_dtype(str(a.device))
    return a.to(dtype) @ b.to(dtype).T


def orthogonality_gradient(decoder: Tensor, coefficient: float, seed: tuple[int, ...]) -> Tensor:
    """OrtSAE (Korznikov et al. 2025): ``coefficient * mean_i max_{j != i} cos(d_i, d_j)^2``.

    The maximum is over the features of a random chunk, drawn anew by ``seed``.
    """
    width = len(decoder)
    gradient = torch.zeros_like(decoder)
    order = torch.randperm(width, generator=_generator(seed)).to(decoder.device)
    for members in order.split(_CHUNK):
        if len(members) < 2:
            continue
        rows = decoder[members]
        cosines = _cosines(rows, rows).square()
        nearest = cosines.fill_diagonal_(-1).argmax(1)
        cosine = (rows * rows[nearest]).sum(1, keepdim=True)
        pull = cosine * (2 * coefficient / width)
        gradient.index_add_(0, members, pull * rows[nearest])
        gradient.index_add_(0, members[nearest], pull * rows)
    return gradient


def agreement_gradients(
    decoders: list[Tensor], coefficient: float, seed: tuple[int, ...]
) -> list[Tensor]:
    """Mutual feature regularisation (Marks et al. 2024) of dictionaries trained in parallel.

    The term is ``coefficient * (1 - mean of max_j cos(d_i, e_j))`` over the features i of each
    dictionary and all features j of each other one, estimated in a step on a random chunk of i.
    """
    gradients = [torch.zeros_like(d) for d in decoders]
    generator = _generator(seed)
    pairs = len(decoders) * (len(decoders) - 1)
    for a, first in enumerate(decoders):
        members = torch.randperm(len(first), generator=generator)[:_CHUNK].to(first.device)
        for b, second in enumerate(decoders):
            if a != b:
                nearest = _cosines(first[members], second).argmax(1)
                pull = coefficient / (len(members) * pairs)
                gradients[a].index_add_(0, members, second[nearest], alpha=-pull)
                gradients[b].index_add_(0, nearest, first[members], alpha=-pull)
    return gradients


def _generator(seed: tuple[int, ...]) -> torch.Generator:
    """A generator of its own for every (seed, step): nothing to remember in a checkpoint."""
    mixed = 0
    for part in seed:
        mixed = (mixed * 1_000_003 + part) % 2**63
    return torch.Generator().manual_seed(mixed)

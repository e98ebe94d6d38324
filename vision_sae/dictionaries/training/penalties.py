"""Penalties on decoder rows, for every architecture.

Each function returns the gradient of a penalty by the decoder (F, D). Rows have unit norm, so a
cosine is a dot product; the learner drops the radial part of the gradient.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from vision_sae.dictionaries.kernels import add_rows_
from vision_sae.models.precision import training_dtype

_CHUNK = 1024
"""Features compared with each other at a time, which makes the cost linear in F."""


def _cosines(a: Tensor, b: Tensor) -> Tensor:
    """Dot products (A, B) in the precision of training, which suffices to choose the
    nearest row."""
    dtype = training_dtype(a.device)
    return a.to(dtype) @ b.to(dtype).T


def orthogonality_gradient(
    decoder: Float[Tensor, "F D"], coefficient: float, seed: tuple[int, ...]
) -> Float[Tensor, "F D"]:
    """OrtSAE (Korznikov et al. 2025): ``coefficient * mean_i max_{j != i} cos(d_i, d_j)^2``.

    The maximum runs over the features of a random chunk, which ``seed`` determines.
    """
    width = len(decoder)
    gradient = torch.zeros_like(decoder)
    order = torch.randperm(width, generator=_generator(seed)).to(decoder.device, non_blocking=True)
    for members in order.split(_CHUNK):
        if len(members) < 2:
            continue
        rows = decoder[members]
        cosines = _cosines(rows, rows).square()
        nearest = cosines.fill_diagonal_(-1).argmax(1)
        cosine = (rows * rows[nearest]).sum(1, keepdim=True)
        pull = cosine * (2 * coefficient / width)
        add_rows_(gradient, members, pull * rows[nearest])
        add_rows_(gradient, members[nearest], pull * rows)
    return gradient


def agreement_gradients(
    decoders: list[Tensor], coefficient: float, seed: tuple[int, ...]
) -> list[Tensor]:
    """Mutual feature regularisation (Marks et al. 2024) of dictionaries trained in parallel.

    The term is ``coefficient * (1 - mean of max_j cos(d_i, e_j))`` over the features i of each
    dictionary and all features j of each other dictionary. The estimate uses a random chunk of the
    features i, which ``seed`` determines.
    """
    gradients = [torch.zeros_like(d) for d in decoders]
    generator = _generator(seed)
    pairs = len(decoders) * (len(decoders) - 1)
    for a, first in enumerate(decoders):
        members = torch.randperm(len(first), generator=generator)[:_CHUNK]
        members = members.to(first.device, non_blocking=True)
        for b, second in enumerate(decoders):
            if a != b:
                nearest = _cosines(first[members], second).argmax(1)
                pull = coefficient / (len(members) * pairs)
                add_rows_(gradients[a], members, second[nearest], factor=-pull)
                add_rows_(gradients[b], nearest, first[members], factor=-pull)
    return gradients


def _generator(seed: tuple[int, ...]) -> torch.Generator:
    """A generator for each (seed, step), so that checkpoints need no generator state."""
    mixed = 0
    for part in seed:
        mixed = (mixed * 1_000_003 + part) % 2**63
    return torch.Generator().manual_seed(mixed)

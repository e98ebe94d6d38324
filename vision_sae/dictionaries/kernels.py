"""The three sparse products of a k-sparse autoencoder, without a dense (N, F) or (N, k, D) tensor.

With codes (indices, values) of shape (N, k) and a matrix of rows W (F, D):

- `bag`: ``codes @ W`` -> (N, D), the decoder;
- `sampled_dot`: ``(a @ W.T)`` at the codes' positions only -> (N, k), values and their gradients;
- `transposed_bag`: ``codes.T @ a`` -> (F, D), the weights' gradients.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def bag(indices: Tensor, values: Tensor, rows: Tensor) -> Tensor:
    """``out[n] = sum_j values[n, j] * rows[indices[n, j]]``, shape (N, D); zeros where k is 0."""
    if not indices.numel():  # torch refuses bags that are all empty
        return rows.new_zeros(len(indices), rows.shape[1])
    return F.embedding_bag(indices, rows, per_sample_weights=values, mode="sum")


def sampled_dot(indices: Tensor, a: Tensor, rows: Tensor) -> Tensor:
    """``out[n, j] = a[n] . rows[indices[n, j]]``, shape (N, k).

    ``indices`` ascend in each row, as compressed sparse rows demand.
    """
    n, k = indices.shape
    row_starts = torch.arange(n + 1, device=indices.device) * k  # k is 0 where nothing fires
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "CSR support is in beta state"
        pattern = torch.sparse_csr_tensor(
            row_starts,
            indices.reshape(-1),
            torch.zeros(n * k, dtype=a.dtype, device=a.device),
            (n, rows.shape[0]),
            check_invariants=False,
        )
        sampled: Tensor = torch.sparse.sampled_addmm(pattern, a, rows.T, beta=0.0)
    return sampled.values().reshape(n, k)


class Transposed(NamedTuple):
    """The codes of a batch in order of feature: one sort serves every weight gradient."""

    order: Tensor
    """Permutation (N * k) of the flattened codes that sorts them by feature."""
    samples: Tensor
    """The sample of each sorted code (N * k)."""
    starts: Tensor
    """Where each feature's codes start (F)."""


def transpose(indices: Tensor, width: int) -> Transposed:
    """Sort codes (N, k) by feature."""
    flat = indices.reshape(-1)
    order = torch.argsort(flat, stable=True)
    counts = torch.bincount(flat, minlength=width)
    return Transposed(order, order // max(indices.shape[1], 1), counts.cumsum(0) - counts)


def transposed_bag(transposed: Transposed, values: Tensor, a: Tensor) -> Tensor:
    """``out[f] = sum of values[n, j] * a[n] over all codes with indices[n, j] = f``, (F, D)."""
    weights = values.reshape(-1)[transposed.order]
    return F.embedding_bag(
        transposed.samples, a, transposed.starts, per_sample_weights=weights, mode="sum"
    )


def top_k(pre_activations: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(indices ascending, values) of the k largest entries of each row (N, F) -> 2 x (N, k)."""
    values, indices = torch.topk(pre_activations, k, dim=1, sorted=False)
    indices, order = indices.sort(dim=1)
    return indices, values.gather(1, order)

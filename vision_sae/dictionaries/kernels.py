"""The three sparse products of a k-sparse autoencoder, without a dense (N, F) or (N, K, D) tensor.

With codes (indices, values) of shape (N, K) and a matrix of rows W (F, D):

- `bag`: ``codes @ W`` -> (N, D), the decoder;
- `sampled_dot`: ``(a @ W.T)`` at the codes' positions only -> (N, K), activations and gradients;
- `transposed_bag`: ``codes.T @ a`` -> (F, D), for the weights' gradients.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor


def bag(
    indices: Shaped[Tensor, "N K"], values: Float[Tensor, "N K"], rows: Float[Tensor, "F D"]
) -> Float[Tensor, "N D"]:
    """``out[n] = sum_j values[n, j] * rows[indices[n, j]]``; zeros if K is 0."""
    if not indices.numel():  # torch refuses only empty bags
        return rows.new_zeros(len(indices), rows.shape[1])
    return F.embedding_bag(indices, rows, per_sample_weights=values, mode="sum")


def sampled_dot(
    indices: Int64[Tensor, "N K"], a: Float[Tensor, "N D"], rows: Float[Tensor, "F D"]
) -> Float[Tensor, "N K"]:
    """``out[n, j] = a[n] . rows[indices[n, j]]``.

    ``indices`` must ascend in each row, as compressed sparse rows demand; on a GPU any order will
    do (not yet run on a GPU).
    """
    if a.device.type != "cpu":  # where sparse products would wait for the device
        return bag_derivative(indices, a, rows)
    n, k = indices.shape
    row_starts = torch.arange(n + 1, device=indices.device) * k  # k is 0 if no feature fires
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


def bag_derivative(
    indices: Int64[Tensor, "N K"], a: Float[Tensor, "N D"], rows: Float[Tensor, "F D"]
) -> Float[Tensor, "N K"]:
    """`sampled_dot` for indices in any order: the derivative of ``(bag * a).sum()`` by values."""
    n, k = indices.shape
    bags = torch.arange(n, device=a.device)
    flat: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        a.contiguous(),
        rows,
        indices.reshape(-1),
        bags * k,
        bags[:, None].expand(n, k).reshape(-1),
        0,  # the mode "sum"
    )
    return flat.reshape(n, k)


class Transposed(NamedTuple):
    """The codes of a batch, sorted by feature; all weight gradients use the same sort."""

    order: Tensor
    """Permutation (N * K) that sorts the flattened codes by feature."""
    samples: Tensor
    """The row of each sorted code (N * K)."""
    starts: Tensor
    """The position of each feature's first code (F)."""


def transpose(indices: Int64[Tensor, "N K"], width: int) -> Transposed:
    """Sort codes by feature. Without a wait for the device, which `torch.bincount` would need."""
    ordered, order = indices.reshape(-1).sort(stable=True)
    starts = torch.searchsorted(ordered, torch.arange(width, device=indices.device))
    return Transposed(order, order // max(indices.shape[1], 1), starts)


def transposed_bag(
    transposed: Transposed, values: Float[Tensor, "N K"], a: Float[Tensor, "N D"]
) -> Float[Tensor, "F D"]:
    """``out[f] = sum of values[n, j] * a[n] over all codes with indices[n, j] = f``."""
    weights = values.reshape(-1)[transposed.order]
    return F.embedding_bag(
        transposed.samples, a, transposed.starts, per_sample_weights=weights, mode="sum"
    )


def add_rows_(
    target: Float[Tensor, "F ..."],
    indices: Int64[Tensor, " M"],
    rows: Float[Tensor, "M ..."],
    *,
    factor: float = 1.0,
) -> None:
    """``target[indices[m]] += factor * rows[m]`` for every m, in place and in a fixed order.

    `Tensor.index_add_` has no fixed order on a GPU, so processes that train together would drift
    apart by rounding.
    """
    if target.device.type == "cpu":
        target.index_add_(0, indices, rows, alpha=factor)
    else:
        target.index_put_((indices,), rows * factor, accumulate=True)


def fired_features(
    indices: Int64[Tensor, "N K"], values: Float[Tensor, "N K"], width: int
) -> Bool[Tensor, " F"]:
    """Which of ``width`` features have a positive value in any row, without a wait."""
    fired = torch.zeros(width + 1, dtype=torch.bool, device=indices.device)
    fired.scatter_(0, torch.where(values > 0, indices, width).reshape(-1), True)
    return fired[:width]


def top_k(
    pre_activations: Float[Tensor, "N F"], k: int
) -> tuple[Int64[Tensor, "N K"], Float[Tensor, "N K"]]:
    """(ascending indices, values) of the k largest entries of each row."""
    values, indices = torch.topk(pre_activations, k, dim=1, sorted=False)
    indices, order = indices.sort(dim=1)
    return indices, values.gather(1, order)

"""AuxK: the strongest dead features learn to reconstruct what the live ones leave over.

Gao et al. 2024, section 2.4 and appendix A.2. Two faults that others have are avoided: the
reconstruction of the error holds no b_dec, and the error is a constant, so that no gradient
reaches the live features through it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class AuxGradients(NamedTuple):
    """Gradients of AuxK's loss by the parameters of the dead features (E of them)."""

    features: Tensor
    """The dead features' numbers (E), int64."""
    w_enc: Tensor
    """(E, D)"""
    b_enc: Tensor
    """(E)"""
    w_dec: Tensor
    """(E, D)"""


def aux_gradients(
    dead: Tensor,
    centred: Tensor,
    error: Tensor,
    *,
    w_enc: Tensor,
    b_enc: Tensor,
    w_dec: Tensor,
    coefficient: float,
) -> AuxGradients | None:
    """Gradients of ``coefficient * mean_n |e_n - aux_n|^2`` with the error ``e = x - x_hat``.

    ``dead`` (F) is a mask, ``centred`` (N, D) are the encoder's inputs, ``error`` (N, D) is
    ``x_hat - x``. At most D / 2 dead features a row take part (one, where D is 1); with
    fewer dead than that the coefficient shrinks in proportion. None when no feature is dead.
    """
    if coefficient == 0 or not dead.any():  # `nonzero` wakes threads, even for nothing
        return None
    numbers = dead.nonzero()[:, 0]
    n, k_aux = len(centred), max(centred.shape[1] // 2, 1)
    enc, dec = w_enc[numbers], w_dec[numbers]
    activations = torch.addmm(b_enc[numbers], centred, enc.T).relu_()
    if len(numbers) > k_aux:
        least = torch.topk(activations, k_aux, dim=1, sorted=True).values[:, -1:]
        activations.mul_(activations >= least)
    residual = activations @ dec + error
    scale = 2 * coefficient * min(1.0, len(numbers) / k_aux) / n
    g_residual = residual.mul_(scale)
    g_activations = (g_residual @ dec.T).mul_(activations > 0)
    return AuxGradients(
        numbers, g_activations.T @ centred, g_activations.sum(0), activations.T @ g_residual
    )

"""AuxK: the strongest dead features learn to reconstruct the residual of the live features.

Gao et al. 2024, section 2.4 and appendix A.2. Other implementations have two faults, which are
avoided here: the auxiliary reconstruction does not add b_dec, and the error is a constant, so that
live features have no gradient through it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

_ACTIVATIONS = 2**26
"""Activations of dead features that exist at a time: more rows are taken in parts."""


class DeadFeatures(NamedTuple):
    """The E features among which all dead ones are."""

    numbers: Int64[Tensor, " E"]
    """Feature numbers, each at most once."""
    dead: Bool[Tensor, " E"] | None
    """Which of the features are dead; None if all are."""


class AuxGradients(NamedTuple):
    """Gradients of AuxK's loss by the parameters of the E features of `DeadFeatures`."""

    features: Int64[Tensor, " E"]
    """The features' numbers, each at most once."""
    w_enc: Float[Tensor, "E D"]
    b_enc: Float[Tensor, " E"]
    w_dec: Float[Tensor, "E D"]


def aux_gradients(
    candidates: DeadFeatures,
    centred: Float[Tensor, "N D"],
    error: Float[Tensor, "N D"],
    *,
    w_enc: Float[Tensor, "F D"],
    b_enc: Float[Tensor, " F"],
    w_dec: Float[Tensor, "F D"],
    coefficient: float,
) -> AuxGradients:
    """Gradients of ``coefficient * mean_n |e_n - aux_n|^2`` with the error ``e = x - x_hat``.

    ``centred`` are the encoder's inputs, and ``error`` is ``x_hat - x``. The D / 2 strongest dead
    features of a row (one if D is 1) reconstruct. With fewer dead features, the coefficient shrinks
    in proportion. The gradients of candidates that are not dead are 0.
    """
    numbers, dead = candidates
    k_aux = max(centred.shape[1] // 2, 1)
    enc, bias, dec = w_enc[numbers], b_enc[numbers], w_dec[numbers]
    factor: float | Tensor = 2 * coefficient / len(centred)
    if dead is None:
        factor *= min(1.0, len(numbers) / k_aux)
    else:  # the number of dead features stays on the device
        factor = (dead.sum() / k_aux).clamp(max=1) * factor
    gradients = AuxGradients(
        numbers, torch.zeros_like(enc), torch.zeros_like(bias), torch.zeros_like(dec)
    )
    size = max(1, _ACTIVATIONS // max(len(numbers), 1))
    for x, wrong in zip(centred.split(size), error.split(size), strict=True):
        activations = torch.addmm(bias, x, enc.T).relu_()
        if dead is not None:
            activations.mul_(dead)
        if len(numbers) > k_aux:
            least = torch.topk(activations, k_aux, dim=1, sorted=True).values[:, -1:]
            activations.mul_(activations >= least)
        g_residual = (activations @ dec + wrong).mul_(factor)
        gradients.w_dec.addmm_(activations.T, g_residual)
        g_activations = (g_residual @ dec.T).mul_(activations > 0)
        gradients.w_enc.addmm_(g_activations.T, x)
        gradients.b_enc.add_(g_activations.sum(0))
    return gradients

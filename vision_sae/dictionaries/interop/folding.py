"""The exact algebra that makes every SAE one that encodes ``x - b_dec`` of raw site vectors x.

Sums are taken in float64 and rounded once. The activations are positively homogeneous (ReLU, TopK;
JumpReLU and BatchTopK when their thresholds scale along), which is all that is used.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

_SMALLEST_NORM = 1e-8
"""A feature without a direction keeps finite weights."""


class SaeWeights(NamedTuple):
    """The weights of `Sae`, by its keywords."""

    w_enc: Tensor
    """(F, D), one encoder direction a row."""
    b_enc: Tensor
    """(F)"""
    w_dec: Tensor
    """(F, D)"""
    b_dec: Tensor
    """(D)"""


def bias_shift(weights: SaeWeights) -> Tensor:
    """What subtracting b_dec from the input takes from the pre-activations: b_dec W_enc, (F),
    float64."""
    return weights.w_enc.double() @ weights.b_dec.double()


def subtracting(weights: SaeWeights) -> SaeWeights:
    """An SAE that encodes x, as one that encodes x - b_dec: ``b_enc' = b_enc + b_dec W_enc``."""
    return weights._replace(b_enc=(weights.b_enc.double() + bias_shift(weights)).float())


def unit_rows(weights: SaeWeights) -> SaeWeights:
    """An SAE whose pre-activations are multiplied by the decoder rows' norms before they compete,
    and whose activations are divided by them before they are decoded: as one whose decoder rows
    have unit norm."""
    norms = weights.w_dec.double().norm(dim=1).clamp_min(_SMALLEST_NORM)
    return weights._replace(
        w_enc=(weights.w_enc.double() * norms[:, None]).float(),
        b_enc=(weights.b_enc.double() * norms).float(),
        w_dec=(weights.w_dec.double() / norms[:, None]).float(),
    )


def on_site_vectors(
    weights: SaeWeights, *, center: Tensor | float = 0.0, scale: float
) -> SaeWeights:
    """An SAE of ``y = (x - center) * scale``, scale > 0, as one of x itself.

    With activations f of y, ``x_hat = y_hat / scale + center = (f / scale) W_dec + b_dec / scale +
    center``: activations and thresholds are divided by ``scale``, into the units of x; encoder and
    decoder rows stay as they are.
    """
    return weights._replace(
        b_enc=(weights.b_enc.double() / scale).float(),
        b_dec=(weights.b_dec.double() / scale + center).float(),
    )

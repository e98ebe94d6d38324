"""ReLU, JumpReLU and Gated in training: how each fires, and what its sparsity penalty is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from vision_sae.dictionaries.gated import GatedSae
from vision_sae.dictionaries.jumprelu import JumpReluSae
from vision_sae.dictionaries.relu import ReluSae
from vision_sae.dictionaries.training.dense_step import DenseLearner, Pass
from vision_sae.dictionaries.training.jump import jump_relu
from vision_sae.dictionaries.training.scaling import InputScaling

_LEAST_THRESHOLD = 1e-3
"""Where JumpReLU's thresholds begin at least (the paper's own beginning)."""
_BANDWIDTH = 1.0
"""JumpReLU's kernel, in standard deviations of a random direction's pre-activations."""


class ReluLearner(DenseLearner):
    """``|z - x_hat|^2 + lambda * sum_i f_i |d_i|`` with ``f = relu((z - b_dec) W_enc + b_enc)``.

    Bricken et al. 2023; the decoder norm, which is 1 here, as in Conerly et al. 2024.
    """

    firmness = 1.0

    def first_parameters(self, width: int, level: float) -> dict[str, Tensor]:
        """Biases from which about k features fire: else L1 has to silence half the dictionary."""
        return {"b_enc": torch.full((width,), -level)}

    def first_sparsity(self, level: float) -> float:
        """L1 takes lambda / 2 off every activation, half of what it takes to fire."""
        return level

    def forward(self, z: Tensor) -> Pass:
        """Encode and reconstruct z (N, D)."""
        p = self.parameters
        activations = self.products(z, p["b_enc"]).relu()
        return Pass(
            x_hat=activations @ p["w_dec"] + p["b_dec"],
            activations=activations,
            penalty=activations.sum(),
        )

    def dictionary(self, scaling: InputScaling) -> ReluSae:
        """The SAE as it stands, on raw site vectors: mean and scale folded in."""
        return ReluSae(**self.folded(scaling))


class JumpReluLearner(DenseLearner):
    """``|z - x_hat|^2 + lambda * |f|_0`` with ``f_i = x_i [x_i > threshold_i]``.

    Rajamanoharan et al. 2024, "Jumping Ahead": the logarithm of each threshold is learned (see
    `jump`). The paper's beginning and bandwidth, 0.001 both, suit millions of steps; in hundreds,
    thresholds must begin where they are needed, see more rows, and move faster than directions.
    """

    firmness = 3.0
    haste: ClassVar[Mapping[str, float]] = {"log_threshold": 10.0}

    def first_parameters(self, width: int, level: float) -> dict[str, Tensor]:
        """Thresholds that about k features exceed."""
        return {"log_threshold": torch.full((width,), math.log(max(level, _LEAST_THRESHOLD)))}

    def first_sparsity(self, level: float) -> float:
        """Without an activation f the error grows by about f^2, and lambda should be less."""
        return level**2 / 4

    def forward(self, z: Tensor) -> Pass:
        """Encode and reconstruct z (N, D)."""
        p = self.parameters
        pre = self.products(z, p["b_enc"])
        bandwidth = _BANDWIDTH / z.shape[1] ** 0.5
        activations, count = jump_relu(pre, p["log_threshold"].exp(), bandwidth)
        x_hat = activations @ p["w_dec"] + p["b_dec"]
        return Pass(x_hat=x_hat, activations=activations, penalty=count)

    def dictionary(self, scaling: InputScaling) -> JumpReluSae:
        """The SAE as it stands, on raw site vectors: mean and scale folded in."""
        threshold = self.parameters["log_threshold"].detach().cpu().exp() / scaling.scale
        return JumpReluSae(threshold=threshold, **self.folded(scaling))


class GatedLearner(DenseLearner):
    """``|z - x_hat|^2 + lambda * |relu(g)|_1 + |z - x_hat_g|^2`` with the gate's pre-activations
    ``g = (z - b_dec) W_enc + b_enc`` and
    ``f = [g > 0] relu(exp(r_mag) (z - b_dec) W_enc + b_mag)``.

    Rajamanoharan et al. 2024, "Improving Dictionary Learning with Gated Sparse Autoencoders": the
    auxiliary x_hat_g decodes relu(g) with a frozen copy of the decoder; without it nothing but the
    penalty would reach the gate.
    """

    firmness = 1.0

    def first_parameters(self, width: int, level: float) -> dict[str, Tensor]:
        """Gates that about k features pass; magnitudes are the bare products."""
        return {
            "b_enc": torch.full((width,), -level),
            "r_mag": torch.zeros(width),
            "b_mag": torch.zeros(width),
        }

    def first_sparsity(self, level: float) -> float:
        """As for ReLU: L1 takes lambda / 2 off the gate's activations."""
        return level

    def forward(self, z: Tensor) -> Pass:
        """Encode and reconstruct z (N, D)."""
        p = self.parameters
        products = self.products(z)
        scale, shift, gate_shift = (
            t.to(products.dtype) for t in (p["r_mag"].exp(), p["b_mag"], p["b_enc"])
        )
        gate = products + gate_shift
        opens = gate.detach().sign().relu()  # a number, not a boolean: see `jump`
        activations = (products * scale + shift).relu() * opens
        through_gate = gate.relu()
        frozen = through_gate @ p["w_dec"].detach() + p["b_dec"].detach()
        return Pass(
            x_hat=activations @ p["w_dec"] + p["b_dec"],
            activations=activations,
            penalty=through_gate.sum(),
            auxiliary=(frozen - z).square().sum(),
        )

    def dictionary(self, scaling: InputScaling) -> GatedSae:
        """The SAE as it stands, on raw site vectors: mean and scale folded in."""
        p = self.parameters
        return GatedSae(
            r_mag=p["r_mag"].detach().cpu().clone(),
            b_mag=p["b_mag"].detach().cpu() / scaling.scale,
            **self.folded(scaling),
        )

"""Gated sparse autoencoder: a gate decides what fires (Rajamanoharan et al. 2024)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from vision_sae.dictionaries.architectures import ARCHITECTURES, Architecture
from vision_sae.dictionaries.protocol import Codes, to_codes
from vision_sae.dictionaries.sae import Sae
from vision_sae.dictionaries.training.dense import DenseLearner, Pass
from vision_sae.dictionaries.training.scaling import InputScaling


class GatedSae(Sae):
    """A feature fires where its gate's pre-activation ``(x - b_dec) W_enc + b_enc`` is positive.

    The activation is the magnitude ``relu(exp(r_mag) * (x - b_dec) W_enc + b_mag)``.
    """

    architecture = "gated"

    def __init__(
        self, *, r_mag: Float[Tensor, " F"], b_mag: Float[Tensor, " F"], **weights: Tensor
    ) -> None:
        """Take the weights of `Sae`, the logarithm ``r_mag`` of the rescaling, and ``b_mag``."""
        super().__init__(**weights)
        self.r_mag, self.b_mag = r_mag, b_mag

    def tensors(self) -> dict[str, Tensor]:
        """The weights of the magnitudes."""
        return {"r_mag": self.r_mag, "b_mag": self.b_mag}

    def gradient(self, feature: int) -> Float[Tensor, " D"] | None:
        """The encoder direction of a feature, rescaled as in its magnitude."""
        return self.w_enc[feature] * self.r_mag[feature].exp()

    def activate(self, pre_activations: Float[Tensor, "N F"]) -> Codes:
        """The gates' pre-activations -> `Codes`."""
        magnitude = (pre_activations - self.b_enc) * self.r_mag.exp() + self.b_mag
        return to_codes(magnitude * (pre_activations > 0))


class GatedLearner(DenseLearner):
    """``|z - x_hat|^2 + lambda * |relu(g)|_1 + |z - x_hat_g|^2`` with the gate's pre-activations
    ``g = (z - b_dec) W_enc + b_enc`` and
    ``f = [g > 0] relu(exp(r_mag) (z - b_dec) W_enc + b_mag)``.

    Rajamanoharan et al. 2024, "Improving Dictionary Learning with Gated Sparse Autoencoders": the
    auxiliary x_hat_g decodes relu(g) with a frozen copy of the decoder. Without the auxiliary loss
    the gate would have a gradient from the penalty alone.
    """

    proportional_gain = 1.0

    def first_parameters(self, width: int, level: float) -> dict[str, Tensor]:
        """Gate biases with which about k features fire; magnitudes without rescaling or shift."""
        return {
            "b_enc": torch.full((width,), -level),
            "r_mag": torch.zeros(width),
            "b_mag": torch.zeros(width),
        }

    def first_sparsity(self, level: float) -> float:
        """The weight whose shrinkage, lambda / 2 of the gate's activations, is half the level."""
        return level

    def forward(self, z: Float[Tensor, "N D"]) -> Pass:
        """Encode and reconstruct scaled site vectors z."""
        p = self.parameters
        products = self.products(z)
        scale, shift, gate_shift = (
            t.to(products.dtype) for t in (p["r_mag"].exp(), p["b_mag"], p["b_enc"])
        )
        gate = products + gate_shift
        opens = gate.detach().sign().relu()  # 0 or 1: products with booleans are far slower
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
        """The current SAE for raw site vectors, with mean and scale folded into the weights."""
        p = self.parameters
        return GatedSae(
            r_mag=p["r_mag"].detach().cpu().clone(),
            b_mag=p["b_mag"].detach().cpu() / scaling.scale,
            **self.folded(scaling),
        )


ARCHITECTURES.register(Architecture(GatedSae, learner=GatedLearner))

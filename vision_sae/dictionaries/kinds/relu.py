"""ReLU sparse autoencoder, sparse through an L1 penalty (Bricken et al. 2023)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from vision_sae.dictionaries.architectures import ARCHITECTURES, Architecture
from vision_sae.dictionaries.protocol import Codes, to_codes
from vision_sae.dictionaries.sae import Sae
from vision_sae.dictionaries.training.dense import DenseLearner, Pass
from vision_sae.dictionaries.training.scaling import InputScaling


class ReluSae(Sae):
    """Every positive pre-activation fires."""

    architecture = "relu"

    def activate(self, pre_activations: Float[Tensor, "N F"]) -> Codes:
        """Pre-activations -> `Codes` of the positive ones."""
        return to_codes(pre_activations)


class ReluLearner(DenseLearner):
    """``|z - x_hat|^2 + lambda * sum_i f_i |d_i|`` with ``f = relu((z - b_dec) W_enc + b_enc)``.

    Bricken et al. 2023; the decoder norm, which is 1 here, as in Conerly et al. 2024.
    """

    proportional_gain = 1.0

    def first_parameters(self, width: int, level: float) -> dict[str, Tensor]:
        """Encoder biases with which about k features fire in a row.

        With zero biases half of the features would fire, and L1 would have to silence them.
        """
        return {"b_enc": torch.full((width,), -level)}

    def first_sparsity(self, level: float) -> float:
        """The weight whose shrinkage, lambda / 2 of every activation, is half the firing level."""
        return level

    def forward(self, z: Float[Tensor, "N D"]) -> Pass:
        """Encode and reconstruct scaled site vectors z."""
        p = self.parameters
        activations = self.products(z, p["b_enc"]).relu()
        return Pass(
            x_hat=activations @ p["w_dec"] + p["b_dec"],
            activations=activations,
            penalty=activations.sum(),
        )

    def dictionary(self, scaling: InputScaling) -> ReluSae:
        """The current SAE for raw site vectors, with mean and scale folded into the weights."""
        return ReluSae(**self.folded(scaling))


ARCHITECTURES.register(Architecture(ReluSae, learner=ReluLearner))

"""Soft-threshold sparse autoencoder: ReLU whose activations lose a fixed amount."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from vision_sae.dictionaries.architectures import ARCHITECTURES, Architecture, settings_of
from vision_sae.dictionaries.protocol import Codes, to_codes
from vision_sae.dictionaries.sae import Sae
from vision_sae.dictionaries.training.dense import DenseLearner, Pass
from vision_sae.dictionaries.training.scaling import InputScaling
from vision_sae.sections import Section


class SoftThresholdConfig(Section):
    """Activations that shrink."""

    shrinkage: float = Field(0.05, ge=0, le=10)
    """What every activation loses, in units of the scaled site vectors."""


class SoftThresholdSae(Sae):
    """``f = relu((x - b_dec) W_enc + b_enc - shrinkage)``."""

    architecture = "soft_threshold"

    def __init__(self, *, shrinkage: float, **weights: Tensor) -> None:
        """Take the weights of `Sae`, and the shrinkage in the units of the site vectors."""
        super().__init__(**weights)
        self.shrinkage = shrinkage

    def settings(self) -> dict[str, Any]:
        """The shrinkage."""
        return {"shrinkage": self.shrinkage}

    def activate(self, pre_activations: Tensor) -> Codes:
        """Pre-activations (N, F) -> `Codes`."""
        return to_codes(pre_activations - self.shrinkage)


class SoftThresholdLearner(DenseLearner):
    """``|z - x_hat|^2 + lambda * sum_i f_i``; see `vision_sae.dictionaries.training.dense`."""

    proportional_gain = 1.0

    @property
    def shrinkage(self) -> float:
        """In units of the scaled site vectors."""
        return settings_of(self.config, SoftThresholdConfig).shrinkage

    def first_parameters(self, width: int, level: float) -> dict[str, Tensor]:
        """Biases from which about k features fire."""
        return {"b_enc": torch.full((width,), -level)}

    def first_sparsity(self, level: float) -> float:
        """The same as of the ReLU architecture."""
        return level

    def forward(self, z: Tensor) -> Pass:
        """Encode and reconstruct z (N, D)."""
        p = self.parameters
        activations = (self.products(z, p["b_enc"]) - self.shrinkage).relu()
        x_hat = activations @ p["w_dec"] + p["b_dec"]
        return Pass(x_hat=x_hat, activations=activations, penalty=activations.sum())

    def dictionary(self, scaling: InputScaling) -> SoftThresholdSae:
        """The SAE as it stands, on raw site vectors: mean and scale folded in."""
        return SoftThresholdSae(shrinkage=self.shrinkage / scaling.scale, **self.folded(scaling))


ARCHITECTURES.register(
    Architecture(SoftThresholdSae, learner=SoftThresholdLearner, settings=SoftThresholdConfig)
)

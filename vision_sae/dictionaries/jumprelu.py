"""JumpReLU sparse autoencoder: a learned threshold a feature (Rajamanoharan et al. 2024)."""

from __future__ import annotations

from torch import Tensor

from vision_sae.dictionaries.protocol import Codes, to_codes
from vision_sae.dictionaries.sae import Sae


class JumpReluSae(Sae):
    """A pre-activation fires, with its own value, where it is above its feature's threshold."""

    architecture = "jumprelu"

    def __init__(self, *, threshold: Tensor, **weights: Tensor) -> None:
        """Take the weights of `Sae`, and ``threshold`` (F), >= 0."""
        super().__init__(**weights)
        self.threshold = threshold

    def tensors(self) -> dict[str, Tensor]:
        """The thresholds."""
        return {"threshold": self.threshold}

    def activate(self, pre_activations: Tensor) -> Codes:
        """Pre-activations (N, F) -> `Codes` of those above their threshold."""
        return to_codes(pre_activations * (pre_activations > self.threshold))

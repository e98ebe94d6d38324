"""ReLU sparse autoencoder, sparse through an L1 penalty (Bricken et al. 2023)."""

from __future__ import annotations

from torch import Tensor

from vision_sae.dictionaries.protocol import Codes, to_codes
from vision_sae.dictionaries.sae import Sae


class ReluSae(Sae):
    """Every positive pre-activation fires."""

    architecture = "relu"

    def activate(self, pre_activations: Tensor) -> Codes:
        """Pre-activations (N, F) -> `Codes` of the positive ones."""
        return to_codes(pre_activations)

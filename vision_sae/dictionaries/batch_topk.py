"""BatchTopK sparse autoencoder (Bussmann et al. 2024): k features a row on average."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vision_sae.dictionaries.protocol import Codes, to_codes
from vision_sae.dictionaries.sae import Sae


class BatchTopKSae(Sae):
    """In training the k * N largest pre-activations of a batch fire.

    Afterwards whatever exceeds ``threshold`` does, a moving average of the smallest value that
    training kept: a row's code does not depend on its batch.
    """

    architecture = "batch_topk"

    def __init__(self, *, k: int, threshold: Tensor, **weights: Tensor) -> None:
        """Take the weights of `Sae`, the k of training, and ``threshold`` (), >= 0."""
        super().__init__(**weights)
        self.k, self.threshold = k, threshold

    def settings(self) -> dict[str, Any]:
        """The k."""
        return {"k": self.k}

    def tensors(self) -> dict[str, Tensor]:
        """The threshold."""
        return {"threshold": self.threshold}

    def activate(self, pre_activations: Tensor) -> Codes:
        """Pre-activations (N, F) -> `Codes` of those above the threshold."""
        return to_codes(pre_activations * (pre_activations > self.threshold))

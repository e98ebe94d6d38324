"""TopK sparse autoencoder (Gao et al. 2024, "Scaling and evaluating sparse autoencoders")."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vision_sae.dictionaries.kernels import top_k
from vision_sae.dictionaries.protocol import Codes
from vision_sae.dictionaries.sae import Sae
from vision_sae.errors import InvalidInputError


class TopKSae(Sae):
    """The k largest pre-activations of a row fire, as far as they are positive.

    Decoder rows have unit norm when trained here, so activations are in the units of the site
    vectors.
    """

    architecture = "topk"

    def __init__(self, *, k: int, **weights: Tensor) -> None:
        """Take the weights of `Sae`, and k: from 1 to F."""
        super().__init__(**weights)
        if not 1 <= k <= self.width:
            raise InvalidInputError(
                f"k is {k}; a code of {self.width} features has 1 to {self.width} that fire",
                field="k",
            )
        self.k = k

    def settings(self) -> dict[str, Any]:
        """The k."""
        return {"k": self.k}

    def activate(self, pre_activations: Tensor) -> Codes:
        """Pre-activations (N, F) -> `Codes` with k slots."""
        indices, values = top_k(pre_activations, self.k)
        return Codes(indices, values.relu())

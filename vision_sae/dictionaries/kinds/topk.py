"""TopK sparse autoencoder (Gao et al. 2024, "Scaling and evaluating sparse autoencoders")."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

from vision_sae.dictionaries.architectures import ARCHITECTURES, Architecture
from vision_sae.dictionaries.kernels import top_k
from vision_sae.dictionaries.protocol import Codes
from vision_sae.dictionaries.sae import Sae
from vision_sae.dictionaries.shortlist import shortlist_of
from vision_sae.dictionaries.training.scaling import InputScaling
from vision_sae.dictionaries.training.sparse import SparseLearner
from vision_sae.errors import InvalidInputError


class TopKSae(Sae):
    """Of the k largest pre-activations of a row, the positive ones fire.

    Training here gives decoder rows unit norm, so activations are in the units of the site vectors.
    """

    architecture = "topk"

    def __init__(self, *, k: int, **weights: Tensor) -> None:
        """Take the weights of `Sae`, and k from 1 to F."""
        super().__init__(**weights)
        if not 1 <= k <= self.width:
            raise InvalidInputError(
                f"k is {k}; choose 1 to {self.width}, the number of features",
                field="k",
            )
        self.k = k

    def settings(self) -> dict[str, Any]:
        """``k``."""
        return {"k": self.k}

    def encode(self, vectors: Float[Tensor, "N D"]) -> Codes:
        """Site vectors -> `Codes` with k slots; on a CPU by a `Shortlist` of a wide dictionary."""
        centred = vectors.float() - self.b_dec
        shortlist = shortlist_of(self, self.w_enc, self.b_enc)
        if shortlist is None or centred.requires_grad or centred.device.type != "cpu":
            return super().encode(vectors)
        return Codes(*shortlist.largest(centred, self.k))

    def activate(self, pre_activations: Float[Tensor, "N F"]) -> Codes:
        """Pre-activations -> `Codes` with k slots."""
        indices, values = top_k(pre_activations, self.k)
        return Codes(indices, values.relu())


class TopKLearner(SparseLearner):
    """A TopK autoencoder in training; see `step.Learner`."""

    def dictionary(self, scaling: InputScaling) -> TopKSae:
        """The current SAE for raw site vectors, with mean and scale folded into the weights."""
        return TopKSae(k=self.config.k, **self.folded(scaling))


ARCHITECTURES.register(Architecture(TopKSae, learner=TopKLearner))

"""BatchTopK sparse autoencoder (Bussmann et al. 2024): k features a row on average."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from vision_sae.config import TrainConfig
from vision_sae.dictionaries.architectures import ARCHITECTURES, Architecture
from vision_sae.dictionaries.protocol import Codes, to_codes
from vision_sae.dictionaries.sae import Sae
from vision_sae.dictionaries.training.distributed import Group
from vision_sae.dictionaries.training.scaling import InputScaling
from vision_sae.dictionaries.training.sparse import Forward, SparseLearner
from vision_sae.dictionaries.training.step import StepReport

_THRESHOLD_WINDOW = (0.1, 100)
"""The window of the threshold's moving average: a share of the steps so far, and a largest number
of steps. With a longer window, a short training would end with the larger thresholds of early
steps."""


class BatchTopKSae(Sae):
    """In training, the k * N largest pre-activations of a batch of N rows fire.

    After training, every pre-activation above ``threshold`` fires, so that a row's code does not
    depend on its batch. The threshold is a moving average of the smallest activation of a batch.
    """

    architecture = "batch_topk"

    def __init__(self, *, k: int, threshold: Float[Tensor, ""], **weights: Tensor) -> None:
        """Take the weights of `Sae`, the k of training, and ``threshold`` >= 0."""
        super().__init__(**weights)
        self.k, self.threshold = k, threshold

    def settings(self) -> dict[str, Any]:
        """``k``."""
        return {"k": self.k}

    def tensors(self) -> dict[str, Tensor]:
        """The threshold."""
        return {"threshold": self.threshold}

    def activate(self, pre_activations: Float[Tensor, "N F"]) -> Codes:
        """Pre-activations -> `Codes` of those above the threshold."""
        return to_codes(pre_activations * (pre_activations > self.threshold))


class BatchTopKLearner(SparseLearner):
    """A BatchTopK autoencoder in training; see `step.Learner`."""

    across_rows: ClassVar[bool] = True

    def __init__(
        self, dim: int, config: TrainConfig, *, group: Group | None = None, device: str = "cpu"
    ) -> None:
        """See `SparseLearner`."""
        super().__init__(dim, config, group=group, device=device)
        self.threshold = torch.zeros((), device=device)
        """Moving average of the smallest activation of a batch."""

    @torch.no_grad()
    def backward(
        self, forward: Forward, rate: float, *, decoder_gradient: Tensor | None = None
    ) -> StepReport:
        """The optimiser step for a forward pass; updates the threshold too."""
        report = super().backward(forward, rate, decoder_gradient=decoder_gradient)
        least = torch.where(forward.values > 0, forward.values, torch.inf).min()
        share, longest = _THRESHOLD_WINDOW
        window = max(1.0, min(longest, share * self.step_number))
        moved = self.threshold.lerp(least, 1 / window)
        self.threshold.copy_(torch.where(least.isinf(), self.threshold, moved))
        return report

    @torch.no_grad()
    def adopt(self, sae: Sae, scaling: InputScaling) -> None:
        """Take over the weights of a trained autoencoder, and its threshold."""
        super().adopt(sae, scaling)
        if isinstance(sae, BatchTopKSae):
            self.threshold.copy_(sae.threshold * scaling.scale)

    def tensors(self) -> dict[str, Tensor]:
        """The state, with the threshold."""
        return super().tensors() | {"threshold": self.threshold}

    def dictionary(self, scaling: InputScaling) -> BatchTopKSae:
        """The current SAE for raw site vectors, with mean and scale folded into the weights."""
        threshold = self.threshold.cpu() / scaling.scale
        return BatchTopKSae(k=self.config.k, threshold=threshold, **self.folded(scaling))


ARCHITECTURES.register(Architecture(BatchTopKSae, learner=BatchTopKLearner))

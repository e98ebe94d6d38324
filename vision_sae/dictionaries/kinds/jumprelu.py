"""JumpReLU sparse autoencoder: a learned threshold per feature (Rajamanoharan et al. 2024).

The step function has no gradient with respect to its threshold. The paper, "Jumping Ahead",
section 4, estimates the derivative of the EXPECTED loss with a kernel, from the pre-activations
near the threshold. With the rectangle ``K(u) = 1 where |u| < 1/2`` and the bandwidth ``e``:

    d JumpReLU(x) / d threshold = -threshold / e * K((x - threshold) / e)
    d [x > threshold] / d threshold = -1 / e * K((x - threshold) / e)

With respect to x, the first derivative is [x > threshold] and the second is zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from vision_sae.dictionaries.architectures import ARCHITECTURES, Architecture
from vision_sae.dictionaries.protocol import Codes, to_codes
from vision_sae.dictionaries.sae import Sae
from vision_sae.dictionaries.training.dense import DenseLearner, Pass
from vision_sae.dictionaries.training.scaling import InputScaling

_LEAST_THRESHOLD = 1e-3
"""The lowest threshold at the start of training; the paper's start for all thresholds."""
_BANDWIDTH = 1.0
"""The kernel's bandwidth, in standard deviations of a random direction's pre-activations."""


class JumpReluSae(Sae):
    """A feature fires where its pre-activation is above the feature's threshold.

    The activation is the pre-activation itself.
    """

    architecture = "jumprelu"

    def __init__(self, *, threshold: Float[Tensor, " F"], **weights: Tensor) -> None:
        """Take the weights of `Sae`, and ``threshold`` >= 0."""
        super().__init__(**weights)
        self.threshold = threshold

    def tensors(self) -> dict[str, Tensor]:
        """The thresholds."""
        return {"threshold": self.threshold}

    def activate(self, pre_activations: Float[Tensor, "N F"]) -> Codes:
        """Pre-activations -> `Codes` of those above their threshold."""
        return to_codes(pre_activations * (pre_activations > self.threshold))


class _JumpRelu(torch.autograd.Function):
    """`jump_relu`. Masks are the numbers 0 and 1: products with booleans are far slower."""

    @staticmethod
    def forward(
        ctx: Any, pre_activations: Tensor, threshold: Tensor, bandwidth: float
    ) -> tuple[Tensor, Tensor]:
        excess = pre_activations - threshold.to(pre_activations.dtype)
        fires = excess.sign().relu_()
        ctx.save_for_backward(excess, fires, threshold)
        ctx.bandwidth = bandwidth
        return pre_activations * fires, fires.sum(1).float().sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        by_activation, by_count = gradients
        excess, fires, threshold = ctx.saved_tensors
        near = excess.abs().neg_().add_(ctx.bandwidth / 2).sign_().relu_()
        pull = near.mul_(by_activation * threshold.to(excess.dtype) + by_count)
        return by_activation * fires, pull.sum(0).float() / -ctx.bandwidth, None


def jump_relu(
    pre_activations: Float[Tensor, "N F"], threshold: Float[Tensor, " F"], bandwidth: float
) -> tuple[Float[Tensor, "N F"], Float[Tensor, ""]]:
    """(activations, the number of active features over all rows) for thresholds > 0.

    Both results are differentiable with respect to pre-activations and thresholds.
    """
    results: tuple[Tensor, Tensor] = _JumpRelu.apply(pre_activations, threshold, bandwidth)
    return results


class JumpReluLearner(DenseLearner):
    """``|z - x_hat|^2 + lambda * |f|_0`` with ``f_i = x_i [x_i > threshold_i]``.

    The learner trains the logarithm of each threshold. In the paper, thresholds start at 0.001 and
    the bandwidth is 0.001, which suits millions of steps. In hundreds of steps, thresholds must
    start near their final values, have a wider bandwidth, and learn faster than directions.
    """

    proportional_gain = 3.0
    rate_factors: ClassVar[Mapping[str, float]] = {"log_threshold": 10.0}

    def first_parameters(self, width: int, level: float) -> dict[str, Tensor]:
        """Thresholds that the pre-activations of about k features exceed in a row."""
        return {"log_threshold": torch.full((width,), math.log(max(level, _LEAST_THRESHOLD)))}

    def first_sparsity(self, level: float) -> float:
        """A quarter of level^2: dropping an activation f adds about f^2 to the error."""
        return level**2 / 4

    def forward(self, z: Float[Tensor, "N D"]) -> Pass:
        """Encode and reconstruct scaled site vectors z."""
        p = self.parameters
        pre = self.products(z, p["b_enc"])
        bandwidth = _BANDWIDTH / z.shape[1] ** 0.5
        activations, count = jump_relu(pre, p["log_threshold"].exp(), bandwidth)
        x_hat = activations @ p["w_dec"] + p["b_dec"]
        return Pass(x_hat=x_hat, activations=activations, penalty=count)

    def dictionary(self, scaling: InputScaling) -> JumpReluSae:
        """The current SAE for raw site vectors, with mean and scale folded into the weights."""
        threshold = self.parameters["log_threshold"].detach().cpu().exp() / scaling.scale
        return JumpReluSae(threshold=threshold, **self.folded(scaling))


ARCHITECTURES.register(Architecture(JumpReluSae, learner=JumpReluLearner))

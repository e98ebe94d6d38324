"""JumpReLU and its L0, with the gradients by the threshold that the step function does not have.

Rajamanoharan et al. 2024, "Jumping Ahead", section 4: the derivative of the EXPECTED loss by a
threshold is estimated with a kernel, from the pre-activations near the threshold. With the
rectangle ``K(u) = 1 where |u| < 1/2`` and the bandwidth ``e``:

    d JumpReLU(x) / d threshold = -threshold / e * K((x - threshold) / e)
    d [x > threshold] / d threshold = -1 / e * K((x - threshold) / e)

By x, the first has the derivative [x > threshold] and the second none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _JumpRelu(torch.autograd.Function):
    """Masks are numbers, 0 or 1: products with booleans are many times slower."""

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
    pre_activations: Tensor, threshold: Tensor, bandwidth: float
) -> tuple[Tensor, Tensor]:
    """Pre-activations (N, F) and thresholds (F), > 0 -> (activations (N, F), how many fire ()).

    Both are differentiable by both.
    """
    made: tuple[Tensor, Tensor] = _JumpRelu.apply(pre_activations, threshold, bandwidth)
    return made

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
    @staticmethod
    def forward(
        ctx: Any, pre_activations: Tensor, threshold: Tensor, bandwidth: float
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(pre_activations, threshold)
        ctx.bandwidth = bandwidth
        fires = pre_activations > threshold.to(pre_activations.dtype)
        return pre_activations * fires, fires.sum().float()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        by_activation, by_count = gradients
        x, threshold = ctx.saved_tensors
        level = threshold.to(x.dtype)
        near = (x - level).abs() < ctx.bandwidth / 2
        by_jump = (near * by_activation).sum(0, dtype=torch.float32)
        by_threshold = (threshold * by_jump + by_count * near.sum(0)) / -ctx.bandwidth
        return by_activation * (x > level), by_threshold, None


def jump_relu(
    pre_activations: Tensor, threshold: Tensor, bandwidth: float
) -> tuple[Tensor, Tensor]:
    """Pre-activations (N, F) and thresholds (F), > 0 -> (activations (N, F), how many fire ()).

    Both are differentiable by both.
    """
    made: tuple[Tensor, Tensor] = _JumpRelu.apply(pre_activations, threshold, bandwidth)
    return made

"""Steering the weight of a sparsity penalty to a wanted number of active features.

The weight that gives 32 active features differs between sites, widths and architectures. Papers
sweep the weight; here a controller finds it during training.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

_GAIN = 0.5
"""Speed of the steady weight, relative to the speed at which Adam turns encoder directions."""
_LARGEST_EXCESS = 2.0
"""Largest relative excess of active features that counts: three times the target."""


class SparsityWeight:
    """The weight lambda of a sparsity penalty: fixed, or steered to an L0.

    ``lambda = steady * (1 + proportional_gain * (L0 / target - 1))``. The steady part integrates
    the error on a logarithmic scale. The proportional part, which damps the steady part, is the
    gradient of ``(L0 / target - 1)^2``, the loss with which Rajamanoharan et al. 2024 ("Jumping
    Ahead", appendix) train to a target. With a gain above 1, lambda becomes negative when far too
    few features are active, which rewards firing.
    """

    def __init__(
        self,
        target: int,
        *,
        start: float,
        proportional_gain: float,
        fixed: float | None = None,
        device: str = "cpu",
    ) -> None:
        """Steer to ``target`` active features per row, from the initial weight ``start``.

        A ``fixed`` weight is never changed.
        """
        self._target, self._proportional_gain = target, proportional_gain
        self._steers = fixed is None
        self.value = torch.tensor(start if fixed is None else fixed, device=device)
        """lambda for the next step, ()."""
        self._steady = self.value.clone()

    def follow(self, l0: Float[Tensor, ""], pace: float) -> None:
        """Update the weight by a batch's mean number ``l0`` of active features per row.

        ``pace`` is the largest change of a parameter vector in one step, relative to its length.
        """
        if not self._steers:
            return
        ratio = l0 / self._target
        self._steady.mul_((ratio.log().clamp(-1, 1) * (_GAIN * pace)).exp())
        excess = (ratio - 1).clamp(max=_LARGEST_EXCESS)
        self.value.copy_(self._steady * (1 + self._proportional_gain * excess))

    def tensors(self) -> dict[str, Tensor]:
        """The whole state, by name."""
        return {"sparsity": self.value, "steady_sparsity": self._steady}

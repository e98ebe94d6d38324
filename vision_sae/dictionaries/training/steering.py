"""Steering the weight of a sparsity penalty until as many features fire as were asked for.

A penalty's weight says nothing by itself: which one gives 32 active features differs between
sites, widths and architectures. Papers sweep it; here a controller finds it while training.
"""

from __future__ import annotations

import torch
from torch import Tensor

_GAIN = 0.5
"""How fast the steady weight follows, beside how fast Adam turns an encoder direction."""
_LARGEST_EXCESS = 2.0
"""More than three times the wanted features count as three times."""


class SparsityWeight:
    """The weight lambda of a sparsity penalty: fixed, or steered to an L0.

    ``lambda = steady * (1 + firmness * (L0 / target - 1))``. The steady part integrates the error
    on a logarithmic scale; the other part is the gradient of ``(L0 / target - 1)^2``, with which
    Rajamanoharan et al. 2024 ("Jumping Ahead", appendix) train to a target, and damps it. With
    a firmness above 1, far too few active features make lambda negative: a reward for firing.
    """

    def __init__(
        self,
        target: int,
        *,
        start: float,
        firmness: float,
        fixed: float | None = None,
        device: str = "cpu",
    ) -> None:
        """Steer to ``target`` active features a row from a first weight of ``start``; or keep the
        weight ``fixed`` where one is given."""
        self._target, self._firmness = target, firmness
        self._steers = fixed is None
        self.value = torch.tensor(start if fixed is None else fixed, device=device)
        """lambda for the next step, ()."""
        self._steady = self.value.clone()

    def follow(self, l0: Tensor, pace: float) -> None:
        """Take notice of a batch's mean active features a row (), before the next step.

        ``pace`` is the share of their own length that parameters can change by in a step.
        """
        if not self._steers:
            return
        ratio = l0 / self._target
        self._steady.mul_((ratio.log().clamp(-1, 1) * (_GAIN * pace)).exp())
        excess = (ratio - 1).clamp(max=_LARGEST_EXCESS)
        self.value.copy_(self._steady * (1 + self._firmness * excess))

    def tensors(self) -> dict[str, Tensor]:
        """The live state."""
        return {"sparsity": self.value, "steady_sparsity": self._steady}

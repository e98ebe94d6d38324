"""Centring and scaling: SAEs train on ``z = (x - mean) * scale``, folded into the saved weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vision_sae.activations.store import ActivationStore
from vision_sae.errors import InvalidInputError

_STATISTICS_ROWS = 262_144
"""Rows from which mean and scale are estimated."""


class InputScaling(NamedTuple):
    """``z = (x - mean) * scale`` has zero mean and unit mean square norm."""

    mean: Tensor
    """Mean per dimension (D)."""
    scale: float
    mean_to_std: float
    """|mean| over the root mean square of |x - mean|: features die in proportion to it."""

    def apply(self, vectors: Tensor) -> Tensor:
        """Site vectors (N, D) -> z (N, D), float32."""
        return (vectors.float() - self.mean) * self.scale


def input_scaling(
    store: ActivationStore, site: str, transform: Callable[[Tensor], Tensor] | None = None
) -> InputScaling:
    """Estimate the scaling from rows spread evenly over the store.

    ``transform`` (N, D) -> (N, D) is applied to the site vectors first.
    """
    stride = max(1, store.rows // _STATISTICS_ROWS)
    total, count = torch.zeros(store.sites[site], dtype=torch.float64), 0
    square = torch.zeros((), dtype=torch.float64)
    for array in store.arrays(site):
        sample = array.flatten(0, 1)[::stride].float()
        rows = (transform(sample) if transform else sample).double()
        total, count = total + rows.sum(0), count + len(rows)
        square = square + rows.square().sum()
    mean = total / count
    mean_square = square / count - mean.square().sum()
    if not mean_square > 0:
        raise InvalidInputError(
            f"all vectors of {site} are equal; there is nothing to train on", field="site"
        )
    spread = float(mean_square.sqrt())
    return InputScaling(mean.float(), 1 / spread, float(mean.norm()) / spread)

"""Centring and scaling: SAEs train on ``z = (x - mean) * scale``, folded into the saved weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from vision_sae.activations.store import ActivationStore
from vision_sae.errors import InvalidInputError

_STATISTICS_ROWS = 262_144
"""The most rows from which mean and scale are estimated."""


class InputScaling(NamedTuple):
    """``z = (x - mean) * scale`` has zero mean and unit mean square norm."""

    mean: Float[Tensor, " D"]
    """Mean per dimension."""
    scale: float
    """One over the root mean square of |x - mean|."""
    mean_to_std: float
    """|mean| over the root mean square of |x - mean|. Larger ratios let more features die."""

    def apply(self, vectors: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """Site vectors -> z, float32."""
        return (vectors.float() - self.mean) * self.scale


def input_scaling(
    store: ActivationStore, site: str, transform: Callable[[Tensor], Tensor] | None = None
) -> InputScaling:
    """Estimate the scaling from rows spread evenly over the store.

    ``transform`` (N, D) -> (N, D) is applied to the site vectors first. Raises `InvalidInputError`
    if all rows are equal, because then they have no scale.
    """
    stride = max(1, store.rows // _STATISTICS_ROWS)
    total, count = torch.zeros(store.sites[site], dtype=torch.float64), 0
    square, origin = torch.zeros((), dtype=torch.float64), None
    for array in store.arrays(site):
        sample = store.checked(site, array.flatten(0, 1)[::stride])
        rows = (transform(sample) if transform else sample).double()
        # With the first row subtracted, equal rows have a spread of exactly 0.
        origin = rows[0].clone() if origin is None else origin
        moved = rows - origin
        total, count = total + moved.sum(0), count + len(rows)
        square = square + moved.square().sum()
    shift = total / count
    mean_square = square / count - shift.square().sum()
    if origin is None or not mean_square > 0:
        what = f"the residual of {site} after the first members" if transform else site
        raise InvalidInputError(
            f"all vectors of {what} are equal; there is nothing to train on. "
            + ("Ask for fewer --members" if transform else "Harvest other pictures"),
            field="members" if transform else "site",
        )
    spread, mean = float(mean_square.sqrt()), origin + shift
    return InputScaling(mean.float(), 1 / spread, float(mean.norm()) / spread)

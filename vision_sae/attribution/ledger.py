"""The ledger: how much each feature, the SAE error and the bias contributed to a target.

At the patches of a site, ``update = b_dec + sum_i f_i d_i + eps``; the codes f and the error eps
are the leaves. The reference is the zero code (f = 0, eps = 0), or the block removed (update = 0,
so that b_dec counts too). With G the gradient of the target by the update, averaged over the
integration nodes, a feature contributes ``sum over patches of f_i <d_i, G>``, the error
``sum <eps, G>`` and the bias ``sum <b_dec, G>``. One node at the picture itself is act x grad;
Gauss-Legendre nodes are integrated gradients (Sundararajan et al. 2017). Special tokens are left
as they are in the picture and in the reference.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vision_sae.attribution.targets import Target
from vision_sae.dictionaries.kernels import sampled_dot
from vision_sae.dictionaries.protocol import Codes, Dictionary
from vision_sae.models.protocol import Model

Reference = Literal["zero", "block_removed"]


class Ledger(NamedTuple):
    """Contributions to one target of one picture; everything sums to `total`."""

    target_value: float
    """The target for the picture as it is."""
    baseline_value: float
    """The target at the reference."""
    update: Tensor
    """The site vectors of the patches (P, D)."""
    codes: Codes
    """The codes of the patches (P, k)."""
    contributions: Tensor
    """What each code contributed (P, k), float64."""
    error: Tensor
    """What the SAE error of each patch contributed (P), float64."""
    bias: Tensor
    """What b_dec contributed at each patch (P), float64; zero unless the block is removed."""
    nodes: int
    """Integration nodes used."""

    @property
    def total(self) -> float:
        """Everything that was attributed."""
        return float(self.contributions.sum() + self.error.sum() + self.bias.sum())

    @property
    def completeness_gap(self) -> float:
        """``target_value - baseline_value - total``: what the method failed to attribute."""
        return self.target_value - self.baseline_value - self.total

    def per_feature(self, width: int) -> Tensor:
        """Contribution of every feature over all patches (F), float64."""
        flat = torch.zeros(width, dtype=torch.float64)
        return flat.index_add_(0, self.codes.indices.reshape(-1), self.contributions.reshape(-1))


def _path(nodes: int) -> tuple[list[float], list[float]]:
    """(positions in (0, 1], weights summing to 1): the picture itself, or Gauss-Legendre."""
    if nodes == 1:
        return [1.0], [1.0]
    positions, weights = np.polynomial.legendre.leggauss(nodes)
    return ((positions + 1) / 2).tolist(), (weights / 2).tolist()


def attribute(
    model: Model,
    dictionary: Dictionary,
    site: str,
    image: Tensor,
    target: Target,
    *,
    nodes: int = 1,
    reference: Reference = "zero",
) -> Ledger:
    """Attribute ``target`` of one picture (3, H, W) to the features at ``site``.

    ``nodes`` 1 is act x grad (one backward pass); more are Gauss-Legendre integrated gradients.
    Memory grows with the active codes, never with the dictionary's width.
    """
    special, batch = model.grid.special, image[None]

    def run(patches: Tensor | None) -> Tensor:
        """The target with the update of the patches (P, D) set; as it is when None."""

        def edit(vectors: Tensor) -> Tensor:
            if patches is None:
                return vectors
            return torch.cat([vectors[:, :special], patches[None].to(vectors)], dim=1)

        with model.replace(site, edit):
            return target(model.forward(batch))[0]

    with torch.no_grad(), model.capture([site]) as captured:
        value = target(model.forward(batch))[0]
    update = captured[site][0, special:].float().cpu()
    codes = dictionary.encode(update)
    error = update - dictionary.decode(codes)
    start = dictionary.bias.expand_as(update) if reference == "zero" else torch.zeros_like(update)
    with torch.no_grad():
        baseline = run(start)

    gradient = torch.zeros_like(update)
    for position, weight in zip(*_path(nodes), strict=True):
        patches = (start + position * (update - start)).requires_grad_()
        (slope,) = torch.autograd.grad(run(patches), patches)
        gradient += weight * slope.float().cpu()

    along = sampled_dot(codes.indices, gradient, dictionary.decoder)
    from_bias = gradient.double() @ dictionary.bias.double()
    return Ledger(
        target_value=float(value),
        baseline_value=float(baseline),
        update=update,
        codes=codes,
        contributions=codes.values.double() * along.double(),
        error=(error.double() * gradient.double()).sum(1),
        bias=torch.zeros_like(from_bias) if reference == "zero" else from_bias,
        nodes=nodes,
    )

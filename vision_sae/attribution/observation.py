"""One picture in one model: its site vectors, and the target when other vectors replace them.

Every method of attribution gets gradients and values of the target from an `Observation`. Site
vectors and gradients stay on the model's device; a method copies its result to host memory once.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from vision_sae.attribution.targets import Target, measure_targets
from vision_sae.models.protocol import Model

_AT_ONCE = 16
"""Variants of a picture in one forward pass."""


def gauss_legendre(nodes: int) -> tuple[list[float], list[float]]:
    """(positions in (0, 1], weights that sum to 1); one node is the end of the way itself."""
    if nodes == 1:
        return [1.0], [1.0]
    positions, weights = np.polynomial.legendre.leggauss(nodes)
    return ((positions + 1) / 2).tolist(), (weights / 2).tolist()


class Observation:
    """One picture in one model: its site vectors, and the target when others replace them."""

    def __init__(
        self,
        model: Model,
        image: Float[Tensor, "C H W"],
        target: Target,
        sites: Sequence[str],
        *,
        special_tokens: bool = False,
    ) -> None:
        """``sites`` are those that will be changed: at their patches and, with ``special_tokens``,
        at the special tokens in front of the patches."""
        self.model, self.target = model, target
        self.special = model.grid.special if special_tokens else 0
        self._held = model.grid.special - self.special
        self._batch = image[None].to(model.device)
        with torch.no_grad(), model.capture(sites) as captured:
            _, values = measure_targets(model, self._batch, [target])
        self.measured: Float[Tensor, ""] = values[0, 0]
        """The target, on the model's device."""
        self.updates: dict[str, Tensor] = {
            site: captured[site][0, self._held :].float() for site in sites
        }
        """{site: vectors (R, D)}, float32, on the model's device"""

    @cached_property
    def value(self) -> float:
        """The target."""
        return float(self.measured)

    def _run(self, site: str, updates: Tensor) -> Tensor:
        """The target (N) with each of N updates (N, R, D) of a site.

        Layers before the site are computed once: the batch of one becomes N at the site.
        """

        def setting(vectors: Tensor) -> Tensor:
            held = vectors[:, : self._held].expand(len(updates), -1, -1)
            return torch.cat([held, updates.to(vectors)], dim=1)

        with self.model.replace(site, setting):
            return measure_targets(self.model, self._batch, [self.target])[1][:, 0]

    def values_at(self, site: str, updates: Float[Tensor, "N R D"]) -> Float64[Tensor, " N"]:
        """The target with each of N updates of a site, in host memory."""
        return self.measured_at(site, updates).cpu().double()

    def measured_at(self, site: str, updates: Float[Tensor, "N R D"]) -> Float[Tensor, " N"]:
        """`values_at` on the model's device."""
        with torch.no_grad():
            return torch.cat([self._run(site, some) for some in updates.split(_AT_ONCE)])

    def value_at(self, site: str, update: Float[Tensor, "R D"]) -> float:
        """The target with this update of a site."""
        return float(self.values_at(site, update[None]))

    def values_of(self, images: Float[Tensor, "N C H W"]) -> Float64[Tensor, " N"]:
        """The target for other model inputs in the picture's place, in host memory."""
        with torch.no_grad():
            parts = [
                measure_targets(self.model, i, [self.target])[1] for i in images.split(_AT_ONCE)
            ]
        return torch.cat(parts)[:, 0].cpu().double()

    def gradient(
        self, site: str, start: Float[Tensor, "R D"] | None = None, nodes: int = 1
    ) -> Float[Tensor, "R D"]:
        """The gradient of the target by the site's update, averaged over the way from ``start`` to
        the picture; for one node, the gradient at the picture itself."""
        update = self.updates[site]
        start = update if start is None else start
        positions, weights = torch.tensor(gauss_legendre(nodes)).to(update.device)
        gradient = torch.zeros_like(update)
        for where, weight in zip(positions.split(_AT_ONCE), weights.split(_AT_ONCE), strict=True):
            rows = (start + where[:, None, None] * (update - start)).requires_grad_()
            (gradients,) = torch.autograd.grad(self._run(site, rows).sum(), rows)
            gradient += torch.einsum("n,npd->pd", weight, gradients.float())
        return gradient

"""Archetypal sparse autoencoder: features are mixtures of data points (Fel et al. 2025)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vision_sae.dictionaries.kernels import bag
from vision_sae.dictionaries.topk import TopKSae


class ArchetypalSae(TopKSae):
    """A TopK autoencoder whose every decoder row leads from the data's mean to a mixture of them.

    ``lengths_i * d_i = mixture_i - origin + relaxation_i``, where the mixture is a convex
    combination of site vectors and the relaxation is short:
    ``|relaxation_i| <= bound * |mixture_i - origin|``. Rows d_i have unit norm.
    """

    architecture = "archetypal"

    def __init__(
        self,
        *,
        k: int,
        bound: float,
        points: Tensor,
        members: Tensor,
        shares: Tensor,
        lengths: Tensor,
        origin: Tensor,
        **weights: Tensor,
    ) -> None:
        """Take the weights of `TopKSae`, and how its decoder came about.

        ``points`` (A, D) are site vectors; feature i mixes those numbered ``members[i]`` (F, M),
        int32, with the weights ``shares[i]`` (F, M), >= 0, which sum to 1. ``lengths`` (F),
        ``origin`` (D) and ``bound`` as above, in the units of the site vectors.
        """
        super().__init__(k=k, **weights)
        self.bound, self.points, self.members, self.shares = bound, points, members, shares
        self.lengths, self.origin = lengths, origin

    def settings(self) -> dict[str, Any]:
        """k and the bound of the relaxations."""
        return super().settings() | {"bound": self.bound}

    def tensors(self) -> dict[str, Tensor]:
        """The points and how they are mixed."""
        names = ("points", "members", "shares", "lengths", "origin")
        return {name: getattr(self, name) for name in names}

    def mixtures(self) -> Tensor:
        """The convex combination of site vectors behind each feature (F, D)."""
        return bag(self.members, self.shares, self.points)

    def relaxations(self) -> Tensor:
        """How far each feature, at its own length, lies from its mixture (F, D)."""
        return self.lengths[:, None] * self.w_dec - (self.mixtures() - self.origin)

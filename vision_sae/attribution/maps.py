"""Results of attribution methods that use no features, to compare attributions by features with.

Every such method uses one site of one picture: A (P, D) are the site vectors of the patches, and
G (P, D) is the gradient of the target by A at the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor


class PatchMap(NamedTuple):
    """One attribution map."""

    values: Float[Tensor, " P"]
    """The value of each patch."""

    @property
    def per_patch(self) -> Float64[Tensor, " P"]:
        """The map, under the name that every family of methods has."""
        return self.values.double()


class Component(NamedTuple):
    """One part of a factorisation of pictures."""

    maps: Float[Tensor, "N P"]
    """The strength of the component at each patch of each picture, >= 0."""
    direction: Float[Tensor, " D"]
    """The component's direction in the space of the site, >= 0."""


class Factorisation(NamedTuple):
    """The components of a factorisation, and their effects on the target of the first picture."""

    components: Sequence[Component]
    """The components with most weight first."""
    effects: Sequence[float]
    """By how much the target falls without each component."""

    @property
    def per_patch(self) -> Float64[Tensor, " P"]:
        """The sum of the components' maps of the first picture."""
        return torch.stack([component.maps[0].double() for component in self.components]).sum(0)

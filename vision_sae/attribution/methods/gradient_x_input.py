"""Gradient times input: one map of a site, without features."""

from __future__ import annotations

from torch import Tensor

from vision_sae.attribution.maps import PatchMap
from vision_sae.attribution.method import METHODS, Method
from vision_sae.attribution.observation import Observation


def gradient_x_input(observation: Observation, site: str) -> Tensor:
    """``<A_p, G_p>`` at each patch (P) (Shrikumar et al. 2017, arXiv:1605.01713)."""
    return (observation.updates[site] * observation.gradient(site)).sum(1)


METHODS.register(
    Method(
        name="gradient_x_input",
        summary="gradient times site vector at each patch",
        paper="Shrikumar et al. 2017, arXiv:1605.01713",
        gives="map",
        answer=lambda task: PatchMap(gradient_x_input(task.observation, task.features.site).cpu()),
    )
)

"""Grad-CAM: one map of a site, without features."""

from __future__ import annotations

from torch import Tensor

from vision_sae.attribution.maps import PatchMap
from vision_sae.attribution.method import METHODS, Method
from vision_sae.attribution.observation import Observation


def grad_cam(observation: Observation, site: str) -> Tensor:
    """``relu(sum_d A_pd mean_q G_qd)`` at each patch (P) (Selvaraju et al. 2017,
    arXiv:1610.02391), with the dimensions of the site as channels."""
    weighted: Tensor = observation.updates[site] @ observation.gradient(site).mean(0)
    return weighted.relu()


METHODS.register(
    Method(
        name="grad_cam",
        summary="site vectors weighted by their mean gradient",
        paper="Selvaraju et al. 2017, arXiv:1610.02391",
        gives="map",
        answer=lambda task: PatchMap(grad_cam(task.observation, task.features.site).cpu()),
    )
)

"""Eigen-CAM: one map of a site, without features and without a target."""

from __future__ import annotations

import torch
from torch import Tensor

from vision_sae.attribution.maps import PatchMap
from vision_sae.attribution.method import METHODS, Method
from vision_sae.attribution.observation import Observation


def eigen_cam(observation: Observation, site: str) -> Tensor:
    """``A v`` at each patch (P), with v the first right singular vector of A, uncentred (Muhammad
    and Yeasin 2020, arXiv:2008.00299).

    A singular vector has no sign of its own: the map is turned so that it correlates with how much
    happens at a patch, ``|A_p|``; where it does not correlate at all, so that it sums above zero.
    """
    vectors = observation.updates[site].cpu().double()
    _, _, right = torch.linalg.svd(vectors, full_matrices=False)
    along: Tensor = vectors @ right[0]
    norms = vectors.norm(dim=1)
    agreement = float(((along - along.mean()) * (norms - norms.mean())).sum())
    if abs(agreement) < 1e-12:
        agreement = float(along.sum())
    return along.float() if agreement >= 0 else -along.float()


METHODS.register(
    Method(
        name="eigen_cam",
        summary="site vectors along their first singular vector",
        paper="Muhammad and Yeasin 2020, arXiv:2008.00299",
        gives="map",
        answer=lambda task: PatchMap(eigen_cam(task.observation, task.features.site)),
    )
)

"""Maps without features, which attributions by features are compared with.

All look at one site of one picture: A the site vectors of its patches (P, D), G the gradient of the
target by them (P, D), at the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vision_sae.attribution.ledger import Scene

_NMF_ITERATIONS = 400


def gradient_x_input(scene: Scene, site: str) -> Tensor:
    """``<A_p, G_p>`` at each patch (P) (Shrikumar et al. 2017, arXiv:1605.01713)."""
    return (scene.updates[site] * scene.gradient(site)).sum(1)


def grad_cam(scene: Scene, site: str) -> Tensor:
    """``relu(sum_d A_pd mean_q G_qd)`` at each patch (P) (Selvaraju et al. 2017,
    arXiv:1610.02391), with the dimensions of the site as channels."""
    weighted: Tensor = scene.updates[site] @ scene.gradient(site).mean(0)
    return weighted.relu()


def eigen_cam(scene: Scene, site: str) -> Tensor:
    """``A v`` at each patch (P), with v the first right singular vector of A, uncentred (Muhammad
    and Yeasin 2020, arXiv:2008.00299).

    A singular vector has no sign of its own: the map is turned so that it correlates with how much
    happens at a patch, ``|A_p|``; where it does not correlate at all, so that it sums above zero.
    """
    vectors = scene.updates[site].double()
    _, _, right = torch.linalg.svd(vectors, full_matrices=False)
    along: Tensor = vectors @ right[0]
    norms = vectors.norm(dim=1)
    agreement = float(((along - along.mean()) * (norms - norms.mean())).sum())
    if abs(agreement) < 1e-12:
        agreement = float(along.sum())
    return along.float() if agreement >= 0 else -along.float()


class Component(NamedTuple):
    """One part of a factorisation of pictures."""

    maps: Tensor
    """How strong it is at each patch of each picture (N, P), >= 0."""
    direction: Tensor
    """What it is in the space of the site (D), >= 0."""


def deep_feature_factorisation(vectors: Tensor, components: int) -> list[Component]:
    """Non-negative factors of ``relu(A)`` of several pictures (N, P, D), those with most weight
    first (Collins et al. 2018, arXiv:1806.10206); none of no pictures."""
    from sklearn.decomposition import NMF

    count, patches, _ = vectors.shape
    positive = vectors.relu().flatten(0, 1).double().numpy()
    components = min(components, *positive.shape)
    if components < 1:
        return []
    factors = NMF(components, init="nndsvda", max_iter=_NMF_ITERATIONS, random_state=0)
    strengths = factors.fit_transform(positive)
    directions = factors.components_
    weights = strengths.sum(0) * np.linalg.norm(directions, axis=1)
    return [
        Component(
            torch.from_numpy(strengths[:, i].reshape(count, patches)).float(),
            torch.from_numpy(directions[i]).float(),
        )
        for i in np.argsort(-weights, kind="stable")
    ]


def component_effects(scene: Scene, site: str, components: Sequence[Component]) -> list[float]:
    """How much the target falls when what a component explains of the first picture is taken out
    of its site vectors."""
    update = scene.updates[site]
    return [
        scene.value - scene.value_at(site, update - c.maps[0][:, None] * c.direction)
        for c in components
    ]

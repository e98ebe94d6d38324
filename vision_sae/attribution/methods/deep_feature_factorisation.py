"""Deep feature factorisation: maps of the parts that a site of several pictures is made of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vision_sae.attribution.maps import Component, Factorisation
from vision_sae.attribution.method import METHODS, AttributionTask, Method
from vision_sae.attribution.observation import Observation

_NMF_ITERATIONS = 400


def deep_feature_factorisation(vectors: Tensor, components: int) -> list[Component]:
    """Non-negative factors of ``relu(A)`` of several pictures (N, P, D), those with most weight
    first (Collins et al. 2018, arXiv:1806.10206); none of no pictures."""
    from sklearn.decomposition import NMF

    count, patches, _ = vectors.shape
    positive = vectors.relu().flatten(0, 1).cpu().double().numpy()
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


def component_effects(
    observation: Observation, site: str, components: Sequence[Component]
) -> list[float]:
    """How much the target falls when what a component explains of the first picture is taken out
    of its site vectors."""
    update = observation.updates[site]
    without = [update - (c.maps[0][:, None] * c.direction).to(update.device) for c in components]
    return [observation.value - observation.value_at(site, some) for some in without]


def _answer(task: AttributionTask) -> Factorisation:
    observation, site = task.observation, task.features.site
    vectors = observation.updates[site][None]
    if task.context is not None:
        vectors = torch.cat([vectors, task.context.to(vectors.device)])
    components = deep_feature_factorisation(vectors, task.components)
    return Factorisation(components, component_effects(observation, site, components))


METHODS.register(
    Method(
        name="deep_feature_factorisation",
        summary="non-negative factors of a site over several pictures, one map a factor",
        paper="Collins et al. 2018, arXiv:1806.10206",
        gives="components",
        answer=_answer,
        takes_context=True,
    )
)

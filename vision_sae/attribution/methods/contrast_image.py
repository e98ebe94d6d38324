"""Integrated gradients from the codes of another picture, which is the reference."""

from __future__ import annotations

from vision_sae.attribution.ledger import ledger
from vision_sae.attribution.method import METHODS, Method

METHODS.register(
    Method(
        name="contrast_image",
        summary="integrated gradients from the codes of another picture",
        paper="Sundararajan et al. 2017, arXiv:1703.01365",
        gives="ledger",
        answer=lambda task: ledger(
            task.observation, task.features, nodes=max(2, task.nodes), reference=task.reference
        ),
    )
)

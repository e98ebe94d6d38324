"""Activation times gradient at the picture: one backward pass."""

from __future__ import annotations

from vision_sae.attribution.ledger import ledger
from vision_sae.attribution.method import METHODS, Method

METHODS.register(
    Method(
        name="act_x_grad",
        summary="activation times gradient at the picture; one backward pass",
        paper="Shrikumar et al. 2017, arXiv:1605.01713",
        gives="ledger",
        answer=lambda task: ledger(task.observation, task.features, reference=task.reference),
    )
)

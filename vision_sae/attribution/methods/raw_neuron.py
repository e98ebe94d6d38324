"""Activation times gradient of the raw neurons of a site, for comparison."""

from __future__ import annotations

from vision_sae.attribution.ledger import ledger
from vision_sae.attribution.method import METHODS, Method

METHODS.register(
    Method(
        name="raw_neuron",
        summary="act x grad over the raw neurons of the site",
        paper="Shrikumar et al. 2017, arXiv:1605.01713",
        gives="ledger",
        answer=lambda task: ledger(task.observation, task.features, reference=task.reference),
        of_neurons=True,
    )
)

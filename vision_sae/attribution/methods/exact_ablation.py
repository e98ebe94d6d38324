"""Exact ablation: the strongest features are set to zero one by one, and the target measured."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vision_sae.attribution.ledger import Ledger, ledger
from vision_sae.attribution.method import METHODS, AttributionTask, Method
from vision_sae.attribution.observation import Observation
from vision_sae.dictionaries.protocol import Codes, SiteDictionary
from vision_sae.dictionaries.resident import resident
from vision_sae.transfers import to_host


def exact_ablation(
    observation: Observation, site_dictionary: SiteDictionary, features: Sequence[int]
) -> Ledger:
    """Ablate each of some features alone, then the error alone, and measure the target again.

    A feature's effect is spread over its rows by its activation there. Effects of several do
    not add up: the gap holds what they do together, and what other features do.
    """
    update = observation.updates[site_dictionary.site]
    dictionary = resident(site_dictionary.dictionary, update.device)
    codes = dictionary.encode(update)
    error = update - dictionary.decode(codes)
    firing = [codes.values * (codes.indices == feature) for feature in features]
    without = [
        update - fires.sum(1, keepdim=True) * dictionary.decoder[feature]
        for feature, fires in zip(features, firing, strict=True)
    ]
    ablated = torch.stack([*without, update - error])
    measured = [
        observation.measured_at(site_dictionary.site, updates)
        for updates in (dictionary.bias.expand_as(update)[None], ablated)
    ]
    # What follows is a sum over features, one by one: it is done in host memory.
    baseline, after, error, update, *parts = to_host(*measured, error, update, *codes, *firing)
    codes, firing = Codes(*parts[:2]), parts[2:]
    per_feature = torch.zeros(dictionary.width, dtype=torch.float64)
    values = torch.zeros_like(codes.values, dtype=torch.float64)
    effects = (observation.value - after.double()).tolist()
    for feature, fires, effect in zip(features, firing, effects, strict=False):
        if not fires.any():  # its effect is 0, whatever rounding says
            continue
        per_feature[feature] = effect
        values += effect * (fires / fires.sum().clamp_min(1e-12)).double()
    of_error = effects[-1]
    norms = error.double().norm(dim=1)
    nothing = torch.zeros(len(update), dtype=torch.float64)
    return Ledger(
        values=torch.cat([observation.measured[None].cpu(), baseline]),
        update=update,
        codes=codes,
        per_feature=per_feature,
        contributions=Codes(codes.indices, values),
        mean=None,
        error=of_error * norms / norms.sum().clamp_min(1e-12),
        bias=nothing,
        nodes=1,
        special=observation.special,
    )


def _answer(task: AttributionTask) -> Ledger:
    """Ablates the features that contribute most by act x grad."""
    first = ledger(task.observation, task.features)
    strongest = first.strongest(task.ablated).tolist()
    return exact_ablation(task.observation, task.features, strongest)


METHODS.register(
    Method(
        name="exact_ablation",
        summary="the strongest features by act x grad are ablated one by one",
        paper="Marks et al. 2024, arXiv:2403.19647",
        gives="ledger",
        answer=_answer,
        ablates=True,
    )
)

"""Translates the edits and transports of requests to the library's."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from vision_sae.dictionaries.protocol import SiteDictionary
from vision_sae.errors import InvalidInputError
from vision_sae.models.generator import GenerationSettings
from vision_sae.models.grid import Geometry, PatchGrid
from vision_sae.steering.edits import (
    ALWAYS,
    IN_MEANS,
    FeatureEdit,
    Half,
    Operation,
    When,
    of_means,
    patch_weights,
)
from vision_sae.steering.generation import Changes
from vision_sae.steering.transport import Transport
from vision_sae.tensors import read_floats
from vision_sae.v1 import edit_pb2
from vision_sae.v1 import generation_service_pb2 as pb
from vision_sae_server.requests.regions import region_mask
from vision_sae_server.served import Served, ServedModel
from vision_sae_server.state import State

_OPERATIONS: dict[int, Operation] = {
    edit_pb2.EDIT_OPERATION_ABLATE: "ablate",
    edit_pb2.EDIT_OPERATION_ADD: "add",
    edit_pb2.EDIT_OPERATION_SCALE: "scale",
    edit_pb2.EDIT_OPERATION_CLAMP: "clamp",
    edit_pb2.EDIT_OPERATION_REPLACE: "replace",
}
_HALVES: dict[int, Half] = {
    edit_pb2.GUIDANCE_HALF_UNSPECIFIED: "conditional",
    edit_pb2.GUIDANCE_HALF_CONDITIONAL: "conditional",
    edit_pb2.GUIDANCE_HALF_BOTH: "both",
    edit_pb2.GUIDANCE_HALF_OPPOSED: "opposed",
}


class Translated(NamedTuple):
    """The edits and transports of a generation, in the library's types."""

    changes: Changes
    features: list[tuple[Served, int]]
    """The distinct features that the edits and transports name."""


def translate(
    state: State,
    model: ServedModel,
    requested: pb.GenerationSettings,
    settings: GenerationSettings,
) -> Translated:
    """The edits and transports of the ``requested`` settings; the complete ``settings`` hold the
    picture's size and the number of steps.

    Raises `InvalidInputError` for a dictionary of another model, and for patches or steps that the
    generation does not have.
    """
    dictionaries: dict[str, SiteDictionary] = {}
    features: dict[tuple[str, int], tuple[Served, int]] = {}

    def use(name: str, where: str) -> tuple[Served, PatchGrid, Geometry]:
        served = state.dictionary(name)
        if served.model.resource != model.resource:
            raise InvalidInputError(
                f"{name} is of {served.model.resource}, the picture is made by {model.resource}",
                field=where,
            )
        dictionaries[name] = SiteDictionary(served.bundle.dictionary, served.bundle.site)
        grid = model.generator.grid(served.bundle.site, settings.height, settings.width)
        return served, grid, Geometry.whole(settings.width, settings.height)

    edits, transports = [], []
    for edit in requested.edits:
        served, grid, geometry = use(edit.feature.rpartition("/features/")[0], "edits.feature")
        when = _when(edit.when, settings.steps_run)
        edits.append(feature_edit(edit, served, grid, geometry, when))
        features[served.resource, edits[-1].feature] = served, edits[-1].feature
    for transport in requested.transports:
        served, grid, geometry = use(transport.dictionary, "transports.dictionary")
        source = target = None
        if transport.HasField("source_region"):
            source = region_mask(
                transport.source_region, grid, geometry, "transports.source_region"
            )
        if transport.HasField("target_region"):
            target = region_mask(
                transport.target_region, grid, geometry, "transports.target_region"
            )
        for feature in transport.features:
            served.bundle.check_feature(feature)
            features[served.resource, feature] = served, feature
        seed = transport.source_seed if transport.HasField("source_seed") else settings.seed
        transports.append(
            Transport(
                transport.dictionary,
                GenerationSettings(transport.source_prompt, seed=seed),
                tuple(transport.features),
                transport.top_k or Transport.top_k,
                None if source is None else torch.from_numpy(source),
                None if target is None else torch.from_numpy(target),
                transport.strength if transport.HasField("strength") else 1.0,
                _when(transport.when, settings.steps_run),
            )
        )
    return Translated(Changes(edits, transports, dictionaries), list(features.values()))


def feature_edit(
    edit: edit_pb2.Edit, served: Served, grid: PatchGrid, geometry: Geometry, when: When = ALWAYS
) -> FeatureEdit:
    """The library's edit for a picture with this grid and geometry."""
    name, _, number = edit.feature.rpartition("/features/")
    feature = int(number)
    operation = _OPERATIONS[edit.operation]
    raw = edit.unit == edit_pb2.EDIT_UNIT_RAW or operation not in IN_MEANS
    served.bundle.check_feature(feature)
    weights, above = _where(edit, served, feature, grid, geometry)
    return FeatureEdit(
        name,
        feature,
        operation,
        edit.value if raw else of_means(edit.value, feature, served.bundle),
        weights=weights,
        fires_above=above,
        when=when,
        half=_HALVES[edit.guidance_half],
    )


def _when(when: edit_pb2.When, steps: int) -> When:
    kind = when.WhichOneof("time")
    if kind == "schedule":
        return When(factors=tuple(when.schedule.factors))
    if kind == "steps":
        first, last = when.steps.first, when.steps.last if when.steps.HasField("last") else None
        if first >= steps or (last is not None and last < first):
            raise InvalidInputError(
                f"steps {first} to {'the end' if last is None else last} are none of the {steps} "
                f"steps of this generation, which are 0 to {steps - 1}",
                field="when.steps",
            )
        return When(first, last)
    return When()


def _where(
    edit: edit_pb2.Edit, served: Served, feature: int, grid: PatchGrid, geometry: Geometry
) -> tuple[torch.Tensor | None, float | None]:
    """(weights of the patches (P), lower limit of the activation)"""
    place = edit.where.WhichOneof("place")
    if place is None:
        return None, None
    if place == "own_map":
        _, values = served.bundle.postings.row(feature)
        share = edit.where.own_map.min_quantile
        above = float(np.quantile(values, share)) if share and len(values) else 0.0
        return None, above
    if place == "weights":
        field = "edits.where.weights"
        return patch_weights(read_floats(edit.where.weights, field=field), grid, field), None
    if place == "patches":
        indices = list(edit.where.patches.indices)
        if max(indices) >= grid.patches:
            raise InvalidInputError(
                f"the site has patches 0 to {grid.patches - 1}, not {max(indices)}",
                field="edits.where.patches",
            )
        weights = np.zeros(grid.patches, dtype=np.float32)
        weights[indices] = 1
        return torch.from_numpy(weights), None
    chosen = region_mask(edit.where.region, grid, geometry, "edits.where.region")
    return torch.from_numpy(chosen.astype(np.float32)), None

"""Edits and transports of requests -> those of the library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from vision_sae.dictionaries.protocol import SiteDictionary
from vision_sae.errors import InvalidInputError
from vision_sae.models.generator import GenerationSettings
from vision_sae.models.grid import Geometry, PatchGrid
from vision_sae.steering.edits import ALWAYS, FeatureEdit, Half, Operation, When
from vision_sae.steering.generation import Changes
from vision_sae.steering.transport import Transport
from vision_sae.tensors import read_floats
from vision_sae.v1 import edit_pb2
from vision_sae.v1 import generation_service_pb2 as pb
from vision_sae_server.regions import region_mask
from vision_sae_server.served import Served, ServedModel
from vision_sae_server.state import State

_DEFAULT_TRANSPORTED = 20
_OPERATIONS: dict[int, Operation] = {
    edit_pb2.EDIT_OPERATION_ABLATE: "ablate",
    edit_pb2.EDIT_OPERATION_ADD: "add",
    edit_pb2.EDIT_OPERATION_SCALE: "scale",
    edit_pb2.EDIT_OPERATION_CLAMP: "clamp",
    edit_pb2.EDIT_OPERATION_REPLACE: "replace",
}
_IN_MEANS = {
    edit_pb2.EDIT_OPERATION_ADD,
    edit_pb2.EDIT_OPERATION_CLAMP,
    edit_pb2.EDIT_OPERATION_REPLACE,
}
"""What has a value in units of the feature's mean activation."""
_HALVES: dict[int, Half] = {
    edit_pb2.GUIDANCE_HALF_UNSPECIFIED: "conditional",
    edit_pb2.GUIDANCE_HALF_CONDITIONAL: "conditional",
    edit_pb2.GUIDANCE_HALF_BOTH: "both",
    edit_pb2.GUIDANCE_HALF_OPPOSED: "opposed",
}


@dataclass
class Translated:
    """What a request asks to be done to a generation, in the library's terms."""

    changes: Changes
    regions: list[NDArray[np.bool_] | None] = field(default_factory=list)
    """For each edit and transport the patches (rows, cols) that it may reach; None for all."""
    features: list[tuple[Served, int]] = field(default_factory=list)
    """The features that edits and transports name, each once."""


def translate(
    state: State, model: ServedModel, asked: pb.GenerationSettings, filled: GenerationSettings
) -> Translated:
    """The edits and transports of ``asked``; ``filled`` tells the size of the picture.

    Raises `InvalidInputError` for what is not of this model, or has no place or time in it.
    """
    dictionaries: dict[str, SiteDictionary] = {}
    made = Translated(Changes(dictionaries=dictionaries))

    def use(name: str, where: str) -> tuple[Served, PatchGrid, Geometry]:
        served = state.dictionary(name)
        if served.model.resource != model.resource:
            raise InvalidInputError(
                f"{name} is of {served.model.resource}, the picture is made by {model.resource}",
                field=where,
            )
        dictionaries[name] = SiteDictionary(served.bundle.dictionary, served.bundle.site)
        grid = model.generator.grid(served.bundle.site, filled.height, filled.width)
        return served, grid, Geometry(filled.width, filled.height, 1, 1, 0, 0)

    edits, transports = [], []
    for edit in asked.edits:
        served, grid, geometry = use(edit.feature.rpartition("/features/")[0], "edits.feature")
        when = _when(edit.when, filled.steps_run)
        translated, region = feature_edit(edit, served, grid, geometry, when)
        made.features.append((served, translated.feature))
        made.regions.append(region)
        edits.append(translated)
    for transport in asked.transports:
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
            made.features.append((served, feature))
        made.regions.append(None if target is None else target.reshape(grid.rows, grid.cols))
        seed = transport.source_seed if transport.HasField("source_seed") else filled.seed
        transports.append(
            Transport(
                transport.dictionary,
                GenerationSettings(transport.source_prompt, seed=seed),
                tuple(transport.features),
                transport.top_k or _DEFAULT_TRANSPORTED,
                None if source is None else torch.from_numpy(source),
                None if target is None else torch.from_numpy(target),
                transport.strength if transport.HasField("strength") else 1.0,
                _when(transport.when, filled.steps_run),
            )
        )
    made.changes = Changes(edits, transports, dictionaries)
    made.features = list({(s.resource, index): (s, index) for s, index in made.features}.values())
    return made


def feature_edit(
    edit: edit_pb2.Edit, served: Served, grid: PatchGrid, geometry: Geometry, when: When = ALWAYS
) -> tuple[FeatureEdit, NDArray[np.bool_] | None]:
    """(the edit, the patches (rows, cols) that it may reach; None for all)"""
    name, _, number = edit.feature.rpartition("/features/")
    feature = int(number)
    weights, region, above = _where(edit, served, feature, grid, geometry)
    translated = FeatureEdit(
        name,
        feature,
        _OPERATIONS[edit.operation],
        _value(edit, served, feature),
        weights=weights,
        fires_above=above,
        when=when,
        half=_HALVES[edit.guidance_half],
    )
    return translated, region


def _value(edit: edit_pb2.Edit, served: Served, feature: int) -> float:
    """The value of an edit in the units of the site."""
    served.bundle.check_feature(feature)
    if edit.unit == edit_pb2.EDIT_UNIT_RAW or edit.operation not in _IN_MEANS:
        return edit.value
    mean = float(served.bundle.statistics.mean[feature])
    if not mean and edit.value:
        raise InvalidInputError(
            f"{edit.feature} never fired in the data, so that it has no mean activation; give the "
            "value in EDIT_UNIT_RAW",
            field="edits.unit",
        )
    return edit.value * mean


def _when(when: edit_pb2.When, steps: int) -> When:
    kind = when.WhichOneof("time")
    if kind == "schedule":
        return When(factors=tuple(when.schedule.factors))
    if kind == "steps":
        first, last = when.steps.first, when.steps.last if when.steps.HasField("last") else None
        if first >= steps or (last is not None and last < first):
            raise InvalidInputError(
                f"steps {first} to {'the end' if last is None else last} are none of the {steps} "
                f"of this generation, which are 0 to {steps - 1}",
                field="when.steps",
            )
        return When(first, last)
    return When()


def _where(
    edit: edit_pb2.Edit, served: Served, feature: int, grid: PatchGrid, geometry: Geometry
) -> tuple[torch.Tensor | None, NDArray[np.bool_] | None, float | None]:
    """(weights of the patches, patches that are reached, activation that must be exceeded)"""
    place, shape = edit.where.WhichOneof("place"), (grid.rows, grid.cols)
    if place is None:
        return None, None, None
    if place == "own_map":
        _, values = served.bundle.postings.row(feature)
        share = edit.where.own_map.min_quantile
        above = float(np.quantile(values, share)) if share and len(values) else 0.0
        return None, None, above
    if place == "weights":
        weights = read_floats(edit.where.weights, field="edits.where.weights")
        if weights.shape != shape or not np.all((weights >= 0) & (weights <= 1)):
            raise InvalidInputError(
                f"weights are from 0 to 1 and of the shape {shape} of the site's grid; these have "
                f"{weights.shape}",
                field="edits.where.weights",
            )
    elif place == "patches":
        indices = list(edit.where.patches.indices)
        if max(indices) >= grid.patches:
            raise InvalidInputError(
                f"the site has patches 0 to {grid.patches - 1}, not {max(indices)}",
                field="edits.where.patches",
            )
        weights = np.zeros(grid.patches, dtype=np.float32)
        weights[indices] = 1
    else:
        chosen = region_mask(edit.where.region, grid, geometry, "edits.where.region")
        weights = chosen.astype(np.float32)
    return torch.from_numpy(weights.reshape(-1)), weights.reshape(shape) > 0, None


def regions_in_pixels(
    regions: Sequence[NDArray[np.bool_] | None], height: int, width: int
) -> list[NDArray[np.bool_] | None]:
    """Patches that are reached as pixels of the picture."""
    from vision_sae.steering.effects import pixels_of

    return [None if r is None else pixels_of(r, height, width) for r in regions]

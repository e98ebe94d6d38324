"""Edits of features as callers write them, and their translation into `FeatureEdit`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from vision_sae.api.choices import check_choice
from vision_sae.api.encoding import Box
from vision_sae.api.subjects import Subject
from vision_sae.errors import InvalidInputError
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

Unit = Literal["mean", "raw"]


@dataclass(frozen=True, eq=False)
class Edit:
    """A change to one feature: ``Edit(12)`` ablates it, ``Edit(12, "add", 4)`` raises it.

    Without ``box``, ``weights`` or ``where_it_fires`` the edit applies to all patches, including
    the special tokens of a vision model.
    """

    feature: int
    operation: Operation = "ablate"
    """``ablate``, ``add``, ``scale``, ``clamp`` to a value, or ``replace`` the whole site
    vector."""
    value: float = 0.0
    """The number to add, multiply by, or set; ``ablate`` ignores the value."""
    unit: Unit = "mean"
    """``mean``: the value is in mean activations of the feature over a bundle's data; ``raw``: the
    value is an activation. A ``scale`` has no unit."""
    box: Box | None = None
    """Apply the edit only at patches within (x0, y0, x1, y1), in pixels of the picture."""
    weights: NDArray[Any] | None = field(default=None, repr=False)
    """Strength of the edit at each patch (rows, cols), from 0 to 1."""
    where_it_fires: bool = False
    """Apply the edit only at patches where the unedited feature fires."""
    when: When = ALWAYS
    """The denoising steps at which the edit applies; for generators."""
    half: Half = "conditional"
    """The half of a guided batch that the edit changes; for generators."""


def translated(
    edits: Sequence[Edit], subject: Subject, grid: PatchGrid, geometry: Geometry
) -> list[FeatureEdit]:
    """Translate edits of one dictionary for a picture with this grid to the library's edits.

    Raises `FeatureNotFoundError` for a feature that the dictionary lacks, and `InvalidInputError`
    for a value or place that does not fit.
    """
    return [_translated(edit, subject, grid, geometry) for edit in edits]


def _translated(edit: Edit, subject: Subject, grid: PatchGrid, geometry: Geometry) -> FeatureEdit:
    subject.check_feature(edit.feature)
    check_choice(edit.operation, Operation, "edits.operation")
    check_choice(edit.unit, Unit, "edits.unit")
    check_choice(edit.half, Half, "edits.half")
    places = [edit.box is not None, edit.weights is not None, edit.where_it_fires]
    if sum(places) > 1:
        raise InvalidInputError(
            "an edit has one place: a box, weights, or where the feature fires", field="edits"
        )
    return FeatureEdit(
        subject.name,
        edit.feature,
        edit.operation,
        _value(edit, subject),
        weights=_weights(edit, grid, geometry),
        fires_above=0.0 if edit.where_it_fires else None,
        when=edit.when,
        half=edit.half,
    )


def _value(edit: Edit, subject: Subject) -> float:
    """The value in the units of the site."""
    if edit.unit == "raw" or edit.operation not in IN_MEANS:
        return float(edit.value)
    bundle = subject.needs_bundle("a value in mean activations (unit='mean')", "edits.unit")
    return of_means(edit.value, edit.feature, bundle)


def _weights(edit: Edit, grid: PatchGrid, geometry: Geometry) -> torch.Tensor | None:
    """The strengths at the patches (P); None for all patches."""
    if edit.box is not None:
        chosen = grid.inside(edit.box, geometry)
        grid.check_selects(chosen, geometry, "edits.box")
        return torch.from_numpy(chosen.astype(np.float32))
    if edit.weights is None:
        return None
    return patch_weights(np.asarray(edit.weights, dtype=np.float32), grid, "edits.weights")

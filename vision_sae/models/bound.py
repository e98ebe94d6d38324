"""The model that an artifact was made from: loaded by name, and refused if it has changed."""

from __future__ import annotations

import json
from typing import Any

from vision_sae.errors import MismatchError
from vision_sae.models.grid import PatchGrid
from vision_sae.models.loading import load_model
from vision_sae.models.noised import NoisedPictures
from vision_sae.models.protocol import Model


def check_identity(model: Model, identity: dict[str, Any]) -> None:
    """Raise `MismatchError`, by name, unless ``model`` is the one that a manifest binds."""
    ours = json.loads(json.dumps(model.identity()))  # tuples become lists, as in the manifest
    for key in ("weights_sha256", "preprocessing", "grid"):
        if ours[key] != identity[key]:
            raise MismatchError(
                f"this was made with a model whose {key} is {identity[key]}, but "
                f"{identity['name']} has {ours[key]}; put back the model it was made from, or make "
                "it again",
                field=key,
            )


def bound(model: Model, identity: dict[str, Any]) -> Model:
    """``model`` as a manifest binds it: a generator with the grid of the sites; see
    `check_identity`."""
    if isinstance(model, NoisedPictures):
        model = model.on(PatchGrid(**identity["grid"]))
    check_identity(model, identity)
    return model


def load_bound_model(identity: dict[str, Any], *, device: str = "auto") -> Model:
    """Load the model that a manifest names; see `bound`."""
    return bound(load_model(identity["name"], device=device), identity)

"""Recipes: everything that is needed to repeat a generation bit for bit."""

from __future__ import annotations

import hashlib
import json
import platform
from importlib.metadata import version

import numpy as np
import torch
from PIL import Image

from vision_sae.devices import device_name
from vision_sae.errors import MismatchError
from vision_sae.models.generator import GenerationSettings
from vision_sae.v1 import generation_service_pb2 as pb
from vision_sae.version import CODE_VERSION
from vision_sae_server.answers.enums import dtype
from vision_sae_server.served import ServedModel
from vision_sae_server.state import State

_FORMAT_VERSION = 1
_LIBRARIES = ("torch", "diffusers", "transformers", "numpy")
_MADE_HERE = (
    "format_version",
    "server_version",
    "weights_sha256",
    "scheduler",
    "dtype",
    "device",
)


def device(model: ServedModel) -> str:
    """The device that computes, described as far as it decides the bits of a picture."""
    kind = model.generator.device
    if kind.type != "cpu":
        return f"{kind.type}:{device_name(str(kind))}"
    capability = torch.backends.cpu.get_cpu_capability().lower()
    return f"cpu:{capability}:{torch.get_num_threads()} threads"


def filled_settings(
    requested: pb.GenerationSettings, complete: GenerationSettings
) -> pb.GenerationSettings:
    """The ``requested`` settings with every default filled in from ``complete``."""
    settings = pb.GenerationSettings()
    settings.CopyFrom(requested)
    settings.seed, settings.steps = complete.seed, complete.steps
    settings.guidance_scale = complete.guidance_scale or 0.0
    settings.width, settings.height = complete.width, complete.height
    if requested.HasField("initial_image"):
        settings.initial_image.strength = complete.strength
    for transport in settings.transports:
        if not transport.HasField("source_seed"):
            transport.source_seed = complete.seed
    return settings


def picture_sha256(picture: Image.Image) -> str:
    """SHA-256 of a picture's pixels, 8-bit RGB, row by row."""
    return hashlib.sha256(np.asarray(picture.convert("RGB")).tobytes()).hexdigest()


def recipe(state: State, model: ServedModel, settings: pb.GenerationSettings) -> pb.Recipe:
    """The recipe of ``settings`` on this server, before the generation."""
    identity = model.generator.identity()
    named = {edit.feature.rpartition("/features/")[0] for edit in settings.edits}
    named |= {transport.dictionary for transport in settings.transports}
    return pb.Recipe(
        settings=settings,
        format_version=_FORMAT_VERSION,
        server_version=CODE_VERSION,
        weights_sha256=identity["weights_sha256"],
        manifest_sha256={
            name: state.dictionary(name).bundle.manifest_sha256 for name in sorted(named)
        },
        scheduler=json.dumps(identity["scheduler"], sort_keys=True),
        dtype=dtype(model.generator.dtype),
        device=device(model),
        library_versions={"python": platform.python_version()}
        | {library: version(library) for library in _LIBRARIES},
    )


def check_same(recorded: pb.Recipe, here: pb.Recipe) -> None:
    """Raise `MismatchError` for the first difference that may decide the bits of a picture."""
    for name in _MADE_HERE:
        _check(name, getattr(recorded, name), getattr(here, name))
    for name in ("manifest_sha256", "library_versions"):
        theirs, ours = dict(getattr(recorded, name)), dict(getattr(here, name))
        for key in sorted({*theirs, *ours}):
            _check(f"{name}[{key}]", theirs.get(key), ours.get(key))


def _check(name: str, theirs: object, ours: object) -> None:
    if theirs != ours:
        raise MismatchError(
            f"the recipe was made with {name} {theirs}, here it is {ours}; set allow_drift to "
            "repeat it all the same",
            field=f"recipe.{name}",
        )

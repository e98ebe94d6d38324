"""Recipes: everything it takes to make a picture again, bit for bit."""

from __future__ import annotations

import hashlib
import json
import platform
from importlib.metadata import version

import numpy as np
import torch
from PIL import Image

import vision_sae
from vision_sae.errors import MismatchError
from vision_sae.models.generator import GenerationSettings
from vision_sae.v1 import generation_service_pb2 as pb
from vision_sae_server import messages
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
    """What computes, as far as it decides bits."""
    kind = model.generator.device
    if kind.type != "cpu":
        return f"{kind.type}:{torch.cuda.get_device_name(kind)}"
    capability = torch.backends.cpu.get_cpu_capability().lower()
    return f"cpu:{capability}:{torch.get_num_threads()} threads"


def filled_settings(
    asked: pb.GenerationSettings, filled: GenerationSettings
) -> pb.GenerationSettings:
    """``asked`` with every default filled in."""
    settings = pb.GenerationSettings()
    settings.CopyFrom(asked)
    settings.seed, settings.steps = filled.seed, filled.steps
    settings.guidance_scale = filled.guidance_scale or 0.0
    settings.width, settings.height = filled.width, filled.height
    if asked.HasField("initial_image"):
        settings.initial_image.strength = filled.strength
    for transport in settings.transports:
        if not transport.HasField("source_seed"):
            transport.source_seed = filled.seed
    return settings


def picture_sha256(picture: Image.Image) -> str:
    """Of the pixels, 8-bit RGB, row by row."""
    return hashlib.sha256(np.asarray(picture.convert("RGB")).tobytes()).hexdigest()


def recipe(state: State, model: ServedModel, settings: pb.GenerationSettings) -> pb.Recipe:
    """The recipe of ``settings`` here, before anything is made."""
    identity = model.generator.identity()
    named = {edit.feature.rpartition("/features/")[0] for edit in settings.edits}
    named |= {transport.dictionary for transport in settings.transports}
    return pb.Recipe(
        settings=settings,
        format_version=_FORMAT_VERSION,
        server_version=vision_sae.__version__,
        weights_sha256=identity["weights_sha256"],
        manifest_sha256={
            name: state.dictionary(name).bundle.manifest_sha256 for name in sorted(named)
        },
        scheduler=json.dumps(identity["scheduler"], sort_keys=True),
        dtype=messages.dtype(model.generator.dtype),
        device=device(model),
        library_versions={"python": platform.python_version()}
        | {library: version(library) for library in _LIBRARIES},
    )


def check_same(asked: pb.Recipe, here: pb.Recipe) -> None:
    """Raise `MismatchError`, naming the first difference that may decide bits."""
    for name in _MADE_HERE:
        _check(name, getattr(asked, name), getattr(here, name))
    for name in ("manifest_sha256", "library_versions"):
        theirs, ours = dict(getattr(asked, name)), dict(getattr(here, name))
        for key in sorted({*theirs, *ours}):
            _check(f"{name}[{key}]", theirs.get(key), ours.get(key))


def _check(name: str, theirs: object, ours: object) -> None:
    if theirs != ours:
        raise MismatchError(
            f"the recipe was made with {name} {theirs}, here it is {ours}; set allow_drift to "
            "repeat it all the same",
            field=f"recipe.{name}",
        )

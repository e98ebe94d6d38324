"""The door through which every model is loaded, by the families of `vision_sae.models.family`."""

from __future__ import annotations

from typing import cast

from vision_sae import devices
from vision_sae.devices import Dtype
from vision_sae.models.family import Use
from vision_sae.models.generator import Generator
from vision_sae.models.names import ModelName, check_generator, check_length, check_model, parsed
from vision_sae.models.noised import NoisedPictures
from vision_sae.models.protocol import Model

_DRAWS: Use = "text-to-image"
_SPACE = 2
"""Bytes of a GPU that a model takes for each byte of its weights: the weights, and as much again
for the activations of a pass."""


def load_model(name: str, *, dtype: Dtype = "auto", device: str = "auto") -> Model:
    """Load a model by name or path; `vision_sae.models.names.spellings` lists the forms of names.

    A text-to-image model is loaded as a model of pictures that are noised half way. ``device`` is
    read by `devices.chosen`, ``dtype`` by `precision.computing_dtype`: "auto" is the setting of the
    process. Raises `NotFoundError` when no model answers to the name, and `InvalidInputError` for
    an absent device and for a precision that the device does not have.
    """
    check_length(name)
    check_model(name)
    parts = parsed(name)
    loaded = _loaded(name, parts, dtype, device)
    if parts.family.use(parts.target) == _DRAWS:
        return NoisedPictures(cast(Generator, loaded))
    return cast(Model, loaded)


def load_generator(name: str, *, dtype: Dtype = "auto", device: str = "auto") -> Generator:
    """Load a text-to-image model by name or path, to generate with; see `load_model`.

    Raises `NotFoundError` when no text-to-image model answers to the name.
    """
    check_length(name)
    check_generator(name)
    return cast(Generator, _loaded(name, parsed(name), dtype, device))


def _loaded(name: str, parts: ModelName, dtype: Dtype, device: str) -> Model | Generator:
    """The model of a name that has been checked, on a device with room for its weights."""
    family, target = parts.family, parts.target
    place = devices.chosen(device, needed=_SPACE * family.weights_bytes(target))
    return family.load(target, name, dtype=devices.requested_dtype(dtype), device=place)

"""Reading models from folders, whose files are checked first, and from hubs, which may be out of
reach. An exception of a library becomes an error of the catalogue."""

from __future__ import annotations

import json
import math
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch

from vision_sae.errors import (
    CorruptArtifactError,
    InvalidInputError,
    NotFoundError,
    VisionSaeError,
    shortened,
)

_SAID = 240
"""Letters of another library's message that are passed on."""
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_LIBRARIES_OF_NETWORKS = ("huggingface_hub", "httpx", "httpx2", "httpcore", "httpcore2", "requests")


def said(error: BaseException) -> str:
    """The message of another library's error, shortened, on one line."""
    return shortened(" ".join(str(error).split()) or type(error).__name__, _SAID)


def read_config(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises `NotFoundError` without the file, and
    `CorruptArtifactError` for a file of anything else."""
    try:
        config = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise NotFoundError(f"{path} cannot be read: {error.strerror}", field="model") from error
    except ValueError as error:  # not UTF-8, or not JSON
        raise CorruptArtifactError(f"{path} is not JSON: {said(error)}", field="model") from error
    if not isinstance(config, dict):
        raise CorruptArtifactError(f"{path} does not hold a JSON object", field="model")
    return config


def check_weights(folder: Path) -> None:
    """Raise unless a folder holds weights as safetensors, every file of them whole."""
    from safetensors import SafetensorError, safe_open

    weights = sorted(folder.glob("*.safetensors"))
    pickles = sorted(path for path in folder.glob("*") if path.suffix in _PICKLES)
    if not weights and pickles:
        raise InvalidInputError(
            f"{pickles[0]} is a pickle, which can run code when it is read; save the weights as "
            "model.safetensors",
            field="model",
        )
    if not weights:
        raise NotFoundError(
            f"{folder} holds no weights; put model.safetensors beside its configuration",
            field="model",
        )
    for path in weights:
        try:
            with safe_open(str(path), "pt") as file:
                file.keys()
        except (SafetensorError, OSError) as error:
            raise CorruptArtifactError(
                f"{path} is no whole safetensors file ({said(error)}); copy it anew", field="model"
            ) from error


def numbers_in(folder: Path) -> int:
    """How many numbers the safetensors files of a folder hold."""
    from safetensors import safe_open

    total = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(str(path), "pt") as file:
            names = file.keys()
            total += sum(math.prod(file.get_slice(name).get_shape()) for name in names)
    return total


@contextmanager
def translated_errors(name: str, *, config: Path | None = None) -> Iterator[None]:
    """Translate what a library raises in the body, while it loads the model ``name``.

    ``config`` is the file of the model's configuration, where there is one. Raises `NotFoundError`
    where a hub does not give what is needed, else `CorruptArtifactError`.
    """
    try:
        with _without_retries():
            yield
    except (VisionSaeError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if _of_a_network(error):
            raise NotFoundError(
                f"{name} needs what is not on this machine, and its hub did not give it; look at "
                "the name and the network, download it where there is one, or name a folder that "
                "holds it",
                field="model",
            ) from error
        place = f"the configuration of {name}" if config is None else str(config)
        raise CorruptArtifactError(
            f"{place} and the weights that belong to it do not fit together or make no model "
            f"({said(error)})",
            field="model",
        ) from error


def _of_a_network(error: BaseException | None) -> bool:
    """Whether an error, or a cause of it, is that a hub is out of reach or lacks a name."""
    while error is not None:
        library = type(error).__module__.partition(".")[0]
        if library in _LIBRARIES_OF_NETWORKS:
            return True
        if isinstance(error, (URLError, ConnectionError, TimeoutError, socket.gaierror)):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def _without_retries() -> Iterator[None]:
    """Keep the library of Hugging Face off the network where the address of its hub is unknown.

    Otherwise the library asks six times for every file, which takes 23 seconds, and logs each
    attempt. With a proxy nothing is changed: the proxy looks up the address.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    hub = urlsplit(constants.ENDPOINT)
    if before or getproxies() or _has_address(hub.hostname or ""):
        yield
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _has_address(host: str) -> bool:
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return False
    return True

"""The resource names of the service contract."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from vision_sae.errors import InvalidInputError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def model_resource(name: str) -> str:
    """The resource of a model that is loaded by ``name``: ``demo:clip`` is ``models/demo-clip``.
    The part after ``models/`` begins with a letter or digit and has at most 128 characters."""
    spelled = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-").lstrip("._-")
    return "models/" + (spelled[:128] or "model")


def site_resource(model: str, site: str) -> str:
    """The resource of a site: ``models/{model}/sites/{site}``."""
    return f"{model_resource(model)}/sites/{site}"


def dictionary_of(units: str) -> str:
    """The resource of the dictionary that units belong to. The raw neurons of
    ``models/{model}/sites/{site}`` belong to the neuron basis, ``dictionaries/{model}.{site}``."""
    if units.startswith("dictionaries/"):
        return units
    _, model, _, site = units.split("/")
    return f"dictionaries/{model}.{site}"


def dictionary_resource(name: str) -> str:
    """The resource of a bundle's dictionary: ``dictionaries/{dictionary}``."""
    return f"dictionaries/{name}"


def check_names(bundles: Iterable[Path]) -> None:
    """Raise `InvalidInputError` for bundles whose directory names cannot be resource names."""
    names: set[str] = set()
    for path in bundles:
        if not _NAME.fullmatch(path.name) or path.name in names:
            raise InvalidInputError(
                f"{path}: the name of the directory, {path.name!r}, names the dictionary: it must "
                "be unique and of letters, digits, '.', '_' and '-'",
                field="bundle",
            )
        names.add(path.name)

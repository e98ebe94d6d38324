"""Checkpoints of overcomplete (Fel et al. 2025): pickled modules, recognised to be refused."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from vision_sae.dictionaries.interop.checkpoint import only_file, pickled_names
from vision_sae.dictionaries.interop.format import FORMATS, Format, Sign
from vision_sae.dictionaries.interop.settings import Ignored
from vision_sae.errors import InvalidInputError

NAME = "overcomplete"
SUFFIXES = (".pt", ".pth")
PACKAGE = "overcomplete."


def recognises(path: Path) -> bool:
    """Whether a torch archive names the library's classes."""
    files = [file for suffix in SUFFIXES if (file := only_file(path, suffix)) and file.is_file()]
    return any(name.startswith(PACKAGE) for file in files for name in pickled_names(file))


def load(path: Path, ignored: Ignored) -> NoReturn:
    """Refuse: there is no way to read a pickled module without running code."""
    raise InvalidInputError(
        f"{path}: overcomplete writes pickled modules, and loading one runs whatever code the file "
        "names, so none is loaded here. Where you trust it and overcomplete is installed, load it "
        "and write its encoder, any batch norm folded in, and its dictionary in SAELens' layout "
        "(cfg.json, sae_weights.safetensors), then import that",
        field="source",
    )


FORMATS.register(
    Format(
        name=NAME,
        summary="overcomplete (Fel et al. 2025): recognised, and refused",
        versions="none",
        sign=Sign.CONTENT,
        recognises=recognises,
        load=load,
    )
)

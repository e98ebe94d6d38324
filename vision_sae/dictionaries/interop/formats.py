"""The formats that are known, and the one door to each direction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

from vision_sae.dictionaries.interop import (
    dictionary_learning,
    llamascopium,
    msae,
    overcomplete,
    saelens,
    saev,
    sdxl_unbox,
    sparsify,
    vit_prisma,
)
from vision_sae.dictionaries.protocol import Dictionary
from vision_sae.errors import InvalidInputError, NotFoundError
from vision_sae.places import check_output, check_replaceable

T = TypeVar("T")


class Importable(Protocol):
    """A module that reads one foreign format."""

    NAME: str

    def recognises(self, path: Path) -> bool:
        """Whether the files at ``path``, a directory or a file of it, are of this format."""
        ...

    def load(self, path: Path) -> tuple[Dictionary, dict[str, Any]]:
        """The dictionary of raw site vectors, and what the source says about itself (JSON)."""
        ...


class Exportable(Protocol):
    """A module that writes one foreign format."""

    NAME: str

    def save(self, dictionary: Dictionary, directory: Path, metadata: Mapping[str, Any]) -> None:
        """Publish ``dictionary`` and ``metadata`` (JSON) at ``directory``."""
        ...


_READERS: tuple[Importable, ...] = (
    saelens,
    sparsify,
    sdxl_unbox,
    dictionary_learning,
    llamascopium,
    saev,
    overcomplete,
    vit_prisma,
    msae,
)
"""In the order in which they are asked: those that go by fixed file names first."""
_WRITERS: tuple[Exportable, ...] = (saelens,)
IMPORTS: Mapping[str, Importable] = MappingProxyType({f.NAME: f for f in _READERS})
EXPORTS: Mapping[str, Exportable] = MappingProxyType({f.NAME: f for f in _WRITERS})


def detect(path: Path) -> str:
    """The name of the format of the files at ``path``: a directory, or a file of it."""
    if not path.exists():
        raise NotFoundError(f"{path} does not exist", field="source")
    for name, candidate in IMPORTS.items():
        if candidate.recognises(path):
            return name
    raise InvalidInputError(
        f"{path} is of no known format; its files must keep their names. Name the format with "
        f"--format: {', '.join(IMPORTS)}",
        field="source",
    )


def import_sae(path: Path, format: str | None = None) -> tuple[Dictionary, dict[str, Any]]:
    """Read a foreign checkpoint: a directory, or a file of it.

    Returns the dictionary, which works on raw site vectors (float32, CPU), and what the source
    said about itself, a JSON object. Raises `NotFoundError` for files that are missing,
    `CorruptArtifactError` for ones that are damaged or do not belong together, and
    `InvalidInputError` for what cannot be expressed here or not be read without running code.
    """
    if not path.exists():
        raise NotFoundError(f"{path} does not exist", field="source")
    return _named(IMPORTS, format or detect(path)).load(path)


def export_sae(
    dictionary: Dictionary,
    directory: Path,
    format: str = saelens.NAME,
    *,
    metadata: Mapping[str, Any] = MappingProxyType({}),
    overwrite: bool = False,
) -> None:
    """Write a dictionary in a foreign format, with ``metadata`` (JSON) where it keeps any.

    Writes a new directory or an empty one, all of it or nothing; a manifest of hashes lies beside
    the format's own files. An earlier export is replaced only with ``overwrite``.
    """
    check_export(directory, format, overwrite=overwrite)
    _named(EXPORTS, format).save(dictionary, directory, metadata)


def check_export(
    directory: Path, format: str, *, inputs: Iterable[Path] = (), overwrite: bool = False
) -> None:
    """Refuse, before any work, a format that cannot be written or a place where it may not be."""
    found = check_output(directory, _named(EXPORTS, format).NAME, inputs=inputs)
    check_replaceable(directory, found, overwrite=overwrite)


def _named(formats: Mapping[str, T], name: str) -> T:
    if name not in formats:
        raise InvalidInputError(
            f"no format {name!r}; choose one of {', '.join(formats)}", field="format"
        )
    return formats[name]

"""The formats that are known, and the one door to each direction."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
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
from vision_sae.dictionaries.interop.checkpoint import directory_of
from vision_sae.dictionaries.interop.settings import Ignored, listed, must_exist
from vision_sae.dictionaries.protocol import Dictionary
from vision_sae.dictionaries.sae import Sae
from vision_sae.errors import CorruptArtifactError, InvalidInputError, NotFoundError, quoted
from vision_sae.places import check_output, check_replaceable

T = TypeVar("T")


class Importable(Protocol):
    """A module that reads one foreign format."""

    NAME: str
    FILES: tuple[str, ...]
    """The names that files of this format must have."""

    def recognises(self, path: Path) -> bool:
        """Whether the files at ``path``, a directory or a file of it, are of this format."""
        ...

    def load(self, path: Path, ignored: Ignored) -> tuple[Dictionary, dict[str, Any]]:
        """The dictionary of raw site vectors, and what the source says about itself (JSON).

        Refuses settings that it does not know, but for those that are ``ignored``.
        """
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
    _must_be_there(path)
    for name, candidate in IMPORTS.items():
        if candidate.recognises(path):
            return name
    raise InvalidInputError(
        f"{path} is of no known format; its files must keep their names{_incomplete(path)}. Name "
        f"the format with --format: {', '.join(IMPORTS)}",
        field="source",
    )


def _must_be_there(path: Path) -> None:
    try:
        there = path.exists()
    except OSError as error:  # a name that is too long, a directory that may not be looked into
        raise InvalidInputError(
            f"{quoted(str(path))} cannot be looked up ({error.strerror}); give another path",
            field="source",
        ) from error
    if not there:
        raise NotFoundError(f"{path} does not exist", field="source")


def _incomplete(path: Path) -> str:
    """What is missing where a part of a format's files is there."""
    directory = directory_of(path)
    missing = {
        name: [file for file in candidate.FILES if not (directory / file).is_file()]
        for name, candidate in IMPORTS.items()
    }
    said = [
        f"{name} also needs {listed(files)}"
        for name, files in missing.items()
        if 0 < len(files) < len(IMPORTS[name].FILES)
    ]
    return f" ({'; '.join(said)})" if said else ""


def import_sae(
    path: Path, format: str | None = None, *, ignored: Collection[str] = ()
) -> tuple[Dictionary, dict[str, Any]]:
    """Read a foreign checkpoint: a directory, or a file of it.

    ``ignored`` names settings that no import knows, dotted where an object holds them, of which
    the caller knows that they do not change what is computed; any other one stops the import.
    Returns the dictionary, which works on raw site vectors (float32, CPU), and what the source
    said about itself, a JSON object. Raises `NotFoundError` for files that are missing,
    `CorruptArtifactError` for ones that are damaged or do not belong together, and
    `InvalidInputError` for what cannot be expressed here or not be read without running code.
    """
    _must_be_there(path)
    settings = Ignored(ignored)
    reader = _named(IMPORTS, format or detect(path))
    for name in reader.FILES:
        must_exist(directory_of(path) / name)
    dictionary, said = reader.load(path, settings)
    if settings.unmet():
        raise InvalidInputError(
            f"{path} has no unknown setting {quoted(settings.unmet()[0])}; only what no import "
            "knows can be ignored",
            field="ignore_setting",
        )
    _must_be_finite(path, dictionary)
    return dictionary, said


def _must_be_finite(path: Path, dictionary: Dictionary) -> None:
    """Refuse weights that no longer fit float32 once scales and norms are folded into them."""
    if isinstance(dictionary, Sae):
        tensors = (dictionary.w_enc, dictionary.b_enc, dictionary.w_dec, dictionary.b_dec)
        if not all(bool(t.isfinite().all()) for t in (*tensors, *dictionary.tensors().values())):
            raise CorruptArtifactError(
                f"{path}: its scales are so large or so small that its weights do not fit float32; "
                "use another checkpoint of this run"
            )


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

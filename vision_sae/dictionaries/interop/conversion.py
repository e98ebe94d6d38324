"""Foreign files to a dictionary and back: recognising, reading and writing them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from vision_sae.dictionaries.interop.checkpoint import directory_of
from vision_sae.dictionaries.interop.format import FORMATS, Format
from vision_sae.dictionaries.interop.settings import Ignored, listed, must_exist
from vision_sae.dictionaries.protocol import Dictionary
from vision_sae.dictionaries.sae import Sae
from vision_sae.errors import CorruptArtifactError, InvalidInputError, NotFoundError, quoted
from vision_sae.places import check_output, check_replaceable


def importable() -> list[Format]:
    """Every format, in the order in which files are shown to them: the surest sign first."""
    return sorted(FORMATS, key=lambda format: format.sign)


def detect(path: Path) -> str:
    """The name of the format of the files at ``path``: a directory, or a file of it."""
    _must_be_there(path)
    for candidate in importable():
        if candidate.recognises(path):
            return candidate.name
    raise InvalidInputError(
        f"{path} is of no known format; its files must keep their names{_incomplete(path)}. Name "
        f"the format with --format: {', '.join(FORMATS.names)}",
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
    missing = [
        (candidate, [file for file in candidate.files if not (directory / file).is_file()])
        for candidate in importable()
    ]
    said = [
        f"{candidate.name} also needs {listed(files)}"
        for candidate, files in missing
        if 0 < len(files) < len(candidate.files)
    ]
    return f" ({'; '.join(said)})" if said else ""


def import_sae(
    path: Path, format: str | None = None, *, ignored: Collection[str] = ()
) -> tuple[Dictionary, dict[str, Any]]:
    """Read a foreign checkpoint: a directory, or a file of it.

    ``ignored`` names unknown settings (dotted inside objects) that, as the caller knows, do not
    change the dictionary's results; any other unknown setting stops the import. Returns (the
    dictionary for raw site vectors (float32, CPU), the source's description of itself, a JSON
    object). Raises `NotFoundError` for missing files, `CorruptArtifactError` for files that are
    damaged or do not belong together, and `InvalidInputError` for dictionaries that cannot be
    expressed here, or not be read without running code.
    """
    _must_be_there(path)
    settings = Ignored(ignored)
    reader = FORMATS[format or detect(path)]
    for name in reader.files:
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
    format: str = "saelens",
    *,
    metadata: Mapping[str, Any] = MappingProxyType({}),
    overwrite: bool = False,
) -> None:
    """Write a dictionary in a foreign format, with ``metadata`` (JSON) where it keeps any.

    Writes a new directory or an empty one, all of it or nothing; a manifest of hashes lies beside
    the format's own files. An earlier export is replaced only with ``overwrite``.
    """
    check_export(directory, format, overwrite=overwrite)
    _writer(format)(dictionary, directory, metadata)


def check_export(
    directory: Path, format: str, *, inputs: Iterable[Path] = (), overwrite: bool = False
) -> None:
    """Check that a format can be written, and written to ``directory``; raises errors if not."""
    _writer(format)
    manifest = check_output(directory, format, inputs=inputs)
    check_replaceable(directory, manifest, overwrite=overwrite)


def _writer(name: str) -> Callable[[Dictionary, Path, Mapping[str, Any]], None]:
    """The function that writes a format; raises `InvalidInputError` for a read-only format."""
    save = FORMATS[name].save
    if save is None:
        writable = [format.name for format in FORMATS if format.save]
        raise InvalidInputError(
            f"dictionaries of the format {name} are read, not written; choose one of "
            f"{', '.join(writable)}",
            field="format",
        )
    return save

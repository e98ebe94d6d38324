"""Checks of output paths: no input, and no file of somebody else, is ever replaced.

A directory that vision_sae published is recognised by its manifest, which names the format and
every file. A folder that holds any other file, or has no manifest, belongs to somebody else. Every
command and function that writes checks its output path here before it begins to work.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from vision_sae.errors import AlreadyExistsError, InvalidInputError

MANIFEST = "manifest.json"
UNFINISHED = ".unfinished"
"""The file that marks a staging directory as ours. It holds the plan of the output."""

SYSTEM_FILES = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})
"""Files that file managers leave in every folder that they show; these files belong to nobody."""


def real(directory: Path) -> Path:
    """``directory``, or its real path when it is a symbolic link or has no name (``.``)."""
    if directory.is_symlink() or directory.name in ("", ".."):
        return Path(os.path.realpath(directory))  # `Path.resolve` raises for a link to itself
    return directory


def staging_of(directory: Path) -> Path:
    """The directory in which a publication of ``directory`` is written."""
    directory = real(directory)
    return directory.with_name(f".{directory.name}.staging")


def set_aside_of(directory: Path) -> Path:
    """The directory that holds the old publication while a new one replaces ``directory``."""
    directory = real(directory)
    return directory.with_name(f".{directory.name}.old")


def manifest_of(directory: Path) -> dict[str, Any] | None:
    """The manifest of a published directory; None for any other path."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text())
        entries = manifest["files"].values()
        ours = all(isinstance(e["bytes"], int) and isinstance(e["sha256"], str) for e in entries)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return dict(manifest) if ours else None


def _strangers(directory: Path, manifest: dict[str, Any] | None) -> Iterator[str]:
    """The entries of a directory that its manifest does not name."""
    if manifest is None:
        yield from (path.name for path in directory.iterdir())
        return
    known = {MANIFEST, UNFINISHED, *manifest["files"]}
    for folder, folders, files in os.walk(directory):  # rglob fails if a file vanishes meanwhile
        links = [name for name in folders if Path(folder, name).is_symlink()]
        for name in [*files, *links]:
            path = Path(folder, name).relative_to(directory).as_posix()
            if path not in known and name not in SYSTEM_FILES:
                yield path


def publication_at(place: Path, *, field: str = "out") -> dict[str, Any] | None:
    """The manifest of the publication at ``place``; None when ``place`` is free.

    Raises `AlreadyExistsError`, with the file's name, when ``place`` holds a file that this program
    did not write.
    """
    directory = real(place)
    if not os.path.lexists(directory):
        return None
    if not directory.is_dir():
        raise AlreadyExistsError(f"{place} is a file; name a new folder", field=field)
    manifest = manifest_of(directory)
    stranger = next(_strangers(directory, manifest), None)
    if stranger is None:
        return manifest
    if manifest is None:
        raise AlreadyExistsError(
            f"{place} holds {stranger} and was not made by this program, which replaces nothing "
            "of others; name a new folder",
            field=field,
        )
    raise AlreadyExistsError(
        f"{place} holds {stranger}, which does not belong to it and would be lost; move that "
        "elsewhere, or name a new folder",
        field=field,
    )


def check_beside(place: Path, *, field: str = "out") -> None:
    """Raise `AlreadyExistsError` when somebody else's files are in the way, beside ``place``, of
    the directories in which a publication is written and set aside."""
    staging, old = staging_of(place), set_aside_of(place)
    for folder in (staging, old):
        if folder.is_symlink():
            raise AlreadyExistsError(
                f"{folder} is a link, and in the way of {place}; remove it", field=field
            )
    if not (staging / UNFINISHED).is_file():
        publication_at(staging, field=field)  # raises for files of somebody else
    publication_at(old, field=field)


def check_output(
    place: Path, format: str, *, inputs: Iterable[Path] = (), field: str = "out"
) -> dict[str, Any] | None:
    """Check, before any work, that an artifact of this ``format`` may be published at ``place``.

    Returns the manifest of a finished artifact of the format at ``place``; None when ``place`` is
    free or holds only unfinished work of this program. Whether a finished artifact may be replaced
    is the caller's decision (`check_replaceable`).

    Raises `AlreadyExistsError` when ``place`` holds anything else. Raises `InvalidInputError` when
    ``place`` lies inside or around one of the ``inputs``, lies inside a published directory, is
    the working directory, the home directory or a parent of these, or cannot be written.
    """
    _check_place(place, inputs, field)
    check_beside(place, field=field)
    manifest = publication_at(place, field=field) or publication_at(
        set_aside_of(place), field=field
    )
    if manifest is not None and manifest.get("format") != format:
        raise AlreadyExistsError(
            f"{place} is a {manifest.get('format')}, not a {format}; name a new folder",
            field=field,
        )
    return manifest


def check_replaceable(place: Path, existing: Any, *, overwrite: bool, field: str = "out") -> None:
    """Raise `AlreadyExistsError` unless ``overwrite`` allows to replace the ``existing`` artifact
    (None: there is none) at ``place``."""
    if existing is not None and not overwrite:
        raise AlreadyExistsError(
            f"{place} is finished already, and not the same as what was asked for; name a new "
            "folder, or replace it with --overwrite (overwrite=True)",
            field=field,
        )


def check_collection(
    folder: Path, format: str, *, inputs: Iterable[Path] = (), field: str = "out"
) -> None:
    """Check, before any work, that artifacts of this ``format`` may be written in ``folder``, each
    in a subfolder. The folder may be new, or hold artifacts of the same format.

    Raises `AlreadyExistsError` when the folder holds anything else, and `InvalidInputError` as
    `check_output` does.
    """
    _check_place(folder, inputs, field)
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise AlreadyExistsError(f"{folder} is a file; name a new folder", field=field)
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name in SYSTEM_FILES:
            continue  # no artifact has such a name
        if (manifest_of(path) or {}).get("format") != format:
            raise AlreadyExistsError(
                f"{folder} holds {path.name}, which is no {format}; name a new folder", field=field
            )


def check_output_file(
    path: Path, *, inputs: Iterable[Path] = (), overwrite: bool = False, field: str = "out"
) -> None:
    """Check, before any work, that the file ``path`` may be written.

    Raises `AlreadyExistsError` for an earlier file without ``overwrite``, and always for a folder
    or a device; raises `InvalidInputError` as `check_output` does.
    """
    _check_place(path, inputs, field)
    if path.is_dir():
        raise AlreadyExistsError(f"{path} is a folder; name a file", field=field)
    if path.exists() and not path.is_file():
        raise AlreadyExistsError(f"{path} is no regular file; name another", field=field)
    if os.path.lexists(path) and not overwrite:
        raise AlreadyExistsError(
            f"{path} exists; name a new file, or replace it with --overwrite (overwrite=True)",
            field=field,
        )


def check_output_folder(
    folder: Path,
    names: Sequence[str],
    *,
    inputs: Iterable[Path] = (),
    overwrite: bool = False,
    field: str = "out",
) -> None:
    """Check, before any work, that files without a manifest may be written in ``folder``.

    The folder may be new or empty. With ``overwrite`` it may hold earlier files of these ``names``
    (patterns). Raises `AlreadyExistsError` when it holds anything else, and `InvalidInputError` as
    `check_output` does.
    """
    _check_place(folder, inputs, field)
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise AlreadyExistsError(f"{folder} is a file; name a new folder", field=field)
    held = sorted(path.name for path in folder.iterdir() if path.name not in SYSTEM_FILES)
    for name in held:
        if not any(fnmatchcase(name, pattern) for pattern in names):
            raise AlreadyExistsError(
                f"{folder} holds {name}, which is not of this command; name a new folder",
                field=field,
            )
    if held and not overwrite:
        raise AlreadyExistsError(
            f"{folder} holds {held[0]} already; name a new folder, or replace what is in it with "
            "--overwrite (overwrite=True)",
            field=field,
        )


def _check_place(place: Path, inputs: Iterable[Path], field: str) -> None:
    try:
        resolved = place.resolve()
        sources = [path.resolve() for path in inputs]
        kept = {folder for own in _own_folders() for folder in (own, *own.parents)}
        above = next(folder for folder in (*resolved.parents, resolved) if folder.exists())
        resolved.exists()  # raises for a name that is too long
    except (OSError, RuntimeError, ValueError) as error:
        raise InvalidInputError(
            f"{str(place)!r} is no usable path: {error}", field=field
        ) from error
    if place.name in ("", "..") or resolved in kept:
        raise InvalidInputError(
            f"{str(place)!r} cannot be written to: it is the folder you are in, your home, or one "
            "above them; name a new one",
            field=field,
        )
    for folder in resolved.parents:
        if (manifest := manifest_of(folder)) is not None:
            raise InvalidInputError(
                f"{place} lies inside {folder}, a {manifest.get('format')}, which holds nothing "
                "else; name a place outside",
                field=field,
            )
    for source in sources:
        if resolved == source:
            raise InvalidInputError(
                f"{place} is an input of the same command; name another place", field=field
            )
        if source in resolved.parents:
            raise InvalidInputError(
                f"{place} lies inside {source}, an input of the same command; name a place outside",
                field=field,
            )
        if resolved in source.parents:
            raise InvalidInputError(
                f"{place} holds {source}, an input of the same command; name a place beside it",
                field=field,
            )
    if not above.is_dir():
        raise InvalidInputError(f"{place} cannot be made: {above} is a file", field=field)
    if not os.access(above, os.W_OK | os.X_OK):
        raise InvalidInputError(
            f"{place} cannot be made: {above} may not be written to; name another place",
            field=field,
        )


def _own_folders() -> Iterator[Path]:
    """The working directory and the home directory, which no command may replace."""
    yield Path.cwd()
    try:
        yield Path.home().resolve()
    except RuntimeError:  # the user has no home directory
        return

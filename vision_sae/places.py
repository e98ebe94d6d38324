"""Where outputs may go: what is not ours is never replaced, and nobody's input is.

What vision_sae published is told from everything else by its manifest, which names its format and
every one of its files. A folder with one more file in it is somebody's, and so is everything
without a manifest. Every command and function that writes asks here before it begins to work.
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
"""The file that marks a staging directory as ours. It holds what is being made there."""

SYSTEM_FILES = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})
"""Files that file managers leave in every folder that is looked at; they are nobody's."""


def real(directory: Path) -> Path:
    """The directory itself, where ``directory`` is a symbolic link to it, or has no name of its own
    (``.``)."""
    if directory.is_symlink() or directory.name in ("", ".."):
        return Path(os.path.realpath(directory))  # `Path.resolve` raises for a link to itself
    return directory


def staging_of(directory: Path) -> Path:
    """Where a publication of ``directory`` is written."""
    directory = real(directory)
    return directory.with_name(f".{directory.name}.staging")


def set_aside_of(directory: Path) -> Path:
    """Where the last publication of ``directory`` lies while a new one takes its place."""
    directory = real(directory)
    return directory.with_name(f".{directory.name}.old")


def manifest_of(directory: Path) -> dict[str, Any] | None:
    """The manifest of a published directory; None for any other place."""
    try:
        found = json.loads((directory / MANIFEST).read_text())
        entries = found["files"].values()
        ours = all(isinstance(e["bytes"], int) and isinstance(e["sha256"], str) for e in entries)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return dict(found) if ours else None


def _strangers(directory: Path, manifest: dict[str, Any] | None) -> Iterator[str]:
    """The entries of a directory that are not of its publication."""
    if manifest is None:
        yield from (path.name for path in directory.iterdir())
        return
    known = {MANIFEST, UNFINISHED, *manifest["files"]}
    for folder, folders, files in os.walk(directory):  # unlike rglob it bears a writer beside it
        links = [name for name in folders if Path(folder, name).is_symlink()]
        for name in [*files, *links]:
            path = Path(folder, name).relative_to(directory).as_posix()
            if path not in known and name not in SYSTEM_FILES:
                yield path


def standing(place: Path, *, field: str = "out") -> dict[str, Any] | None:
    """The manifest of what was published at ``place``; None where nothing stands.

    Raises `AlreadyExistsError`, with its name, where anything stands that we did not put there.
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
    """Refuse to publish at ``place`` while something that is not ours stands where a publication
    is written or set aside."""
    staging, old = staging_of(place), set_aside_of(place)
    for folder in (staging, old):
        if folder.is_symlink():
            raise AlreadyExistsError(
                f"{folder} is a link, and in the way of {place}; remove it", field=field
            )
    if not (staging / UNFINISHED).is_file():
        standing(staging, field=field)
    standing(old, field=field)


def check_output(
    place: Path, format: str, *, inputs: Iterable[Path] = (), field: str = "out"
) -> dict[str, Any] | None:
    """Refuse, before any work, a place where no artifact of this ``format`` may be published.

    Gives the manifest of the finished one that stands there, or None where the place is free or
    holds nothing but unfinished work of ours: whether a finished one may stay, or has to go, the
    caller knows (`check_replaceable`). Raises `AlreadyExistsError` for anything else that is there,
    and `InvalidInputError` for a place inside one of the ``inputs``, or around one, inside anything
    that was published, for the working directory, for the home directory, for those above, and for
    a place that cannot be written.
    """
    _check_place(place, inputs, field)
    check_beside(place, field=field)
    found = standing(place, field=field) or standing(set_aside_of(place), field=field)
    if found is not None and found.get("format") != format:
        raise AlreadyExistsError(
            f"{place} is a {found.get('format')}, not a {format}; name a new folder", field=field
        )
    return found


def check_replaceable(place: Path, found: Any, *, overwrite: bool, field: str = "out") -> None:
    """Refuse to replace what was ``found`` finished at ``place``, unless that is asked for."""
    if found is not None and not overwrite:
        raise AlreadyExistsError(
            f"{place} is finished already, and not the same as what was asked for; name a new "
            "folder, or replace it with --overwrite (overwrite=True)",
            field=field,
        )


def check_collection(
    folder: Path, format: str, *, inputs: Iterable[Path] = (), field: str = "out"
) -> None:
    """Refuse, before any work, a folder in which artifacts of this ``format`` may not be made, each
    in a place of its own. It may be new, or hold others like them."""
    _check_place(folder, inputs, field)
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise AlreadyExistsError(f"{folder} is a file; name a new folder", field=field)
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name in SYSTEM_FILES:
            continue  # nothing of that name is made here
        if (manifest_of(path) or {}).get("format") != format:
            raise AlreadyExistsError(
                f"{folder} holds {path.name}, which is no {format}; name a new folder", field=field
            )


def check_output_file(
    path: Path, *, inputs: Iterable[Path] = (), overwrite: bool = False, field: str = "out"
) -> None:
    """Refuse, before any work, a file that may not be written: an earlier file is replaced only
    with ``overwrite``, a folder, a device or an input never."""
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
    """Refuse, before any work, a folder in which files without a manifest may not be written.

    It may be new or empty. With ``overwrite`` it may hold files of these ``names`` (patterns) that
    were written before; with anything else in it, it is somebody's.
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
        apart = [given.resolve() for given in inputs]
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
    for given in apart:
        if resolved == given:
            raise InvalidInputError(
                f"{place} is an input of the same command; name another place", field=field
            )
        if given in resolved.parents:
            raise InvalidInputError(
                f"{place} lies inside {given}, an input of the same command; name a place outside",
                field=field,
            )
        if resolved in given.parents:
            raise InvalidInputError(
                f"{place} holds {given}, an input of the same command; name a place beside it",
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
    """Folders that nobody means to replace."""
    yield Path.cwd()
    try:
        yield Path.home().resolve()
    except RuntimeError:  # a user without one
        return

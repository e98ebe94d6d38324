"""Reading files that other libraries wrote: nothing in them runs, and what is wrong is named.

A pickle can execute code when it is loaded. Torch archives are therefore read by torch's restricted
unpickler alone, and what it does not know is refused.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint

from vision_sae.errors import CorruptArtifactError, InvalidInputError, NotFoundError

_OTHERWISE = "download it again, or name its format with --format"


def directory_of(path: Path) -> Path:
    """The directory of a checkpoint that is given as a directory or as one of its files."""
    return path if path.is_dir() else path.parent


def has_files(path: Path, *names: str) -> bool:
    """Whether ``path`` is a directory with all these files, or one of them beside the others."""
    directory = directory_of(path)
    return (path.is_dir() or path.name in names) and all((directory / n).is_file() for n in names)


def only_file(path: Path, suffix: str) -> Path | None:
    """``path`` itself when it has this suffix, or the only file of the directory that has it."""
    found = sorted(path.glob(f"*{suffix}")) if path.is_dir() else [path]
    return found[0] if len(found) == 1 and found[0].suffix == suffix else None


def one_file(path: Path, suffix: str) -> Path:
    """``path`` itself, or `only_file` of the directory; raises `InvalidInputError` without one."""
    file = only_file(path, suffix) if path.is_dir() else path
    if file is None:
        raise InvalidInputError(
            f"{path} does not hold exactly one {suffix} file; give the file itself", field="source"
        )
    return file


@dataclass(frozen=True)
class Settings:
    """What a JSON file, or a part of one, says; each value is checked when it is asked for."""

    path: Path
    values: Mapping[str, Any]

    def section(self, key: str) -> Settings:
        """The object under ``key``."""
        found = self._required(key)
        if not isinstance(found, dict):
            raise CorruptArtifactError(f"{self.path}: {key} is {found!r}, not an object")
        return Settings(self.path, found)

    def integer(self, key: str) -> int:
        """A positive integer."""
        found = self._required(key)
        if not isinstance(found, int) or isinstance(found, bool) or found < 1:
            raise CorruptArtifactError(f"{self.path}: {key} is {found!r}, not a positive integer")
        return found

    def active(self, key: str, width: int) -> int:
        """A number of active features, at most ``width``."""
        found = self.integer(key)
        if found > width:
            raise CorruptArtifactError(f"{self.path}: {key} is {found}, of {width} features")
        return found

    def text(self, key: str, default: str | None = None) -> str:
        """A string; ``default`` when it is absent or null."""
        found = self.values.get(key)
        found = default if found is None else found
        if not isinstance(found, str):
            raise CorruptArtifactError(f"{self.path} has no text {key}; {_OTHERWISE}")
        return found

    def flag(self, key: str, default: bool) -> bool:
        """A boolean."""
        found = self.values.get(key, default)
        if not isinstance(found, bool):
            raise CorruptArtifactError(f"{self.path}: {key} is {found!r}, not true or false")
        return found

    def agrees(self, key: str, size: float) -> None:
        """Raise when ``key`` is given, not null, and not the size that the tensors have."""
        found = self.values.get(key)
        if found is not None and found != size:
            raise CorruptArtifactError(
                f"{self.path}: {key} is {found!r}, but the tensors have {size}; "
                "the files do not belong together"
            )

    def only(self, key: str, allowed: Collection[Any], default: Any, because: str) -> None:
        """Refuse any value of ``key`` but the ``allowed``, with the reason and the way out."""
        found = self.values.get(key, default)
        if found not in allowed:
            raise InvalidInputError(
                f"{self.path}: {key} {found!r} cannot be imported: {because}", field=key
            )

    def _required(self, key: str) -> Any:
        if key not in self.values:
            raise CorruptArtifactError(f"{self.path} has no {key}; {_OTHERWISE}")
        return self.values[key]


@dataclass(frozen=True)
class Tensors:
    """What a file of named tensors holds; each is checked when it is asked for."""

    path: Path
    stored: Mapping[str, Any]

    def section(self, key: str) -> Tensors:
        """The named tensors under ``key``."""
        found = self.stored.get(key)
        if not isinstance(found, dict):
            raise CorruptArtifactError(f"{self.path} has no tensors under {key}; {_OTHERWISE}")
        return Tensors(self.path, found)

    def take(self, name: str, *shape: int) -> Tensor:
        """A tensor as float32 on the CPU; ``shape`` is what it must have, -1 being any size."""
        found = self.stored.get(name)
        if not isinstance(found, Tensor):
            raise CorruptArtifactError(
                f"{self.path} has no tensor {name}, only {', '.join(map(str, self.stored))}; "
                f"{_OTHERWISE}"
            )
        agrees = found.ndim == len(shape) and all(
            want in (-1, have) for want, have in zip(shape, found.shape, strict=True)
        )
        if not agrees or 0 in found.shape:
            wanted = tuple("any" if size == -1 else size for size in shape)
            raise CorruptArtifactError(
                f"{self.path}: {name} has shape {tuple(found.shape)}, not {wanted}; "
                "the file is damaged or of another format"
            )
        values = found.detach().to("cpu", torch.float32)
        if not bool(values.isfinite().all()):
            raise CorruptArtifactError(
                f"{self.path}: {name} holds NaN or infinity; use another checkpoint of this run"
            )
        return values

    def no_others(self, *known: str) -> None:
        """Refuse tensors beyond the ``known``: they would change what the dictionary computes."""
        others = sorted(str(name) for name in self.stored if name not in known)
        if others:
            raise InvalidInputError(
                f"{self.path} also holds {', '.join(others)}, which no import knows; convert the "
                "checkpoint to SAELens' layout in the library that made it",
                field="source",
            )


def read_settings(path: Path) -> Settings:
    """Read a file that holds one JSON object."""
    must_exist(path)
    return Settings(path, parse_settings(path, path.read_bytes()))


def parse_settings(path: Path, text: bytes) -> dict[str, Any]:
    """The JSON object that ``path`` holds as ``text``."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, or nested without end
        raise CorruptArtifactError(f"{path} is not valid JSON ({error}); {_OTHERWISE}") from error
    if not isinstance(values, dict):
        raise CorruptArtifactError(f"{path} holds no JSON object; {_OTHERWISE}")
    return values


def read_safetensors(path: Path) -> Tensors:
    """Read a safetensors file."""
    must_exist(path)
    try:
        return Tensors(path, load_file(path, device="cpu"))
    except SafetensorError as error:
        raise CorruptArtifactError(f"{path} is damaged ({error}); {_OTHERWISE}") from error


def read_torch(path: Path, archive: IO[bytes] | None = None) -> dict[str, Any]:
    """Read a torch archive of tensors and plain values: ``path``, or what ``archive`` holds of it.

    Raises `InvalidInputError` for one that needs more than that to be loaded, unloaded.
    """
    must_exist(path)
    try:
        stored = torch.load(archive or path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        names = pickled_names(path)
        raise InvalidInputError(
            f"{path} is not a file of plain tensors"
            + (f", it also names {', '.join(names)}" if names else "")
            + "; reading it in any other way could run code that it carries, so it is refused. In "
            "the environment that made it, save its tensors alone, by name, with torch.save",
            field="source",
        ) from error
    except Exception as error:  # damaged bytes make the reader raise whatever it stumbles over
        raise CorruptArtifactError(
            f"{path} cannot be read as a torch archive ({type(error).__name__}); {_OTHERWISE}"
        ) from error
    if not isinstance(stored, dict):
        raise CorruptArtifactError(
            f"{path} holds a {type(stored).__name__} instead of named tensors; {_OTHERWISE}"
        )
    return stored


def pickled_names(path: Path) -> list[str]:
    """The classes and functions, beyond tensors, that a torch archive names. Loads nothing."""
    try:
        return sorted(get_unsafe_globals_in_checkpoint(path))
    except Exception:  # not a torch archive, or one in a form that cannot be looked through
        return []


def must_exist(path: Path) -> None:
    """Raise `NotFoundError` when there is no such file."""
    if not path.is_file():
        raise NotFoundError(f"{path} does not exist; {_OTHERWISE}", field="source")

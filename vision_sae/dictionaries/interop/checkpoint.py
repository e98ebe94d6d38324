"""Reading the tensors that other libraries wrote: nothing in the files runs, and errors name what
is wrong.

A pickle can execute code when it is loaded. Torch archives are therefore read by torch's restricted
unpickler alone, and any object that the unpickler does not know is refused. NumPy's numbers become
plain numbers without calling NumPy's own loaders.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from vision_sae.dictionaries.interop.settings import OTHERWISE, listed, must_exist
from vision_sae.errors import CorruptArtifactError, InvalidInputError, quoted

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def directory_of(path: Path) -> Path:
    """The directory of a checkpoint that is given as a directory or as one of its files."""
    return path if path.is_dir() else path.parent


def has_files(path: Path, *names: str) -> bool:
    """Whether ``path`` is a directory with all these files, or one of them beside the others."""
    directory = directory_of(path)
    return (path.is_dir() or path.name in names) and all((directory / n).is_file() for n in names)


def only_file(path: Path, suffix: str) -> Path | None:
    """``path`` itself, or the only file in the directory ``path``, if the file has this suffix."""
    files = sorted(path.glob(f"*{suffix}")) if path.is_dir() else [path]
    return files[0] if len(files) == 1 and files[0].suffix == suffix else None


def one_file(path: Path, suffix: str) -> Path:
    """``path`` itself, or `only_file` of the directory; raises `InvalidInputError` without one."""
    file = only_file(path, suffix) if path.is_dir() else path
    if file is None:
        raise InvalidInputError(
            f"{path} does not hold exactly one {suffix} file; give the file itself", field="source"
        )
    return file


@dataclass(frozen=True)
class Tensors:
    """The named tensors of a file; each tensor is checked when it is read."""

    path: Path
    stored: Mapping[str, Any]

    def section(self, key: str) -> Tensors:
        """The named tensors under ``key``."""
        part = self.stored.get(key)
        if not isinstance(part, dict):
            raise CorruptArtifactError(f"{self.path} has no tensors under {key}; {OTHERWISE}")
        return Tensors(self.path, part)

    def take(self, name: str, *shape: int) -> Tensor:
        """The tensor ``name``, float32 on the CPU, of a required ``shape``; -1 allows any size."""
        tensor = self._shaped(name, shape)
        if tensor.dtype not in _FLOATS:
            raise InvalidInputError(
                f"{self.path}: {name} holds {tensor.dtype}, which no import scales back to what it "
                "stands for; save it again in float32, float16 or bfloat16",
                field="source",
            )
        values = tensor.to("cpu", torch.float32).contiguous()
        finite = values.isfinite()
        if not bool(finite.all()):
            raise CorruptArtifactError(
                f"{self.path}: {name} holds NaN or infinity, or a number beyond float32, first "
                f"{_first(~finite)}; use another checkpoint of this run"
            )
        return values

    def count(self, name: str) -> int:
        """A number that counts something, in a tensor of no dimensions."""
        tensor = self._shaped(name, ())
        if tensor.dtype not in (torch.int64, torch.int32):
            raise CorruptArtifactError(f"{self.path}: {name} holds {tensor.dtype}, not an integer")
        return int(tensor)

    def no_others(self, *known: str) -> None:
        """Refuse tensors beyond the ``known``: they would change what the dictionary computes."""
        others = sorted(str(name) for name in self.stored if name not in known)
        if others:
            raise InvalidInputError(
                f"{self.path} also holds {listed(others)}, which no import knows; convert the "
                "checkpoint to SAELens' layout in the library that made it",
                field="source",
            )

    def _shaped(self, name: str, shape: tuple[int, ...]) -> Tensor:
        tensor = self.stored.get(name)
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_meta:
            raise CorruptArtifactError(
                f"{self.path} has no tensor {name}, only {listed(self.stored)}; {OTHERWISE}"
            )
        agrees = tensor.ndim == len(shape) and all(
            want in (-1, have) for want, have in zip(shape, tensor.shape, strict=True)
        )
        if not agrees or 0 in tensor.shape:
            wanted = tuple("any" if size == -1 else size for size in shape)
            raise CorruptArtifactError(
                f"{self.path}: {name} has shape {quoted(tuple(tensor.shape))}, not {wanted}; "
                "the file is damaged or of another format"
            )
        return tensor.detach()


def _first(marked: Tensor) -> str:
    """Where the first marked entry of a tensor of up to two dimensions stands."""
    place = int(marked.flatten().int().argmax())
    if marked.ndim == 2:
        return "in row {}, column {}".format(*divmod(place, marked.shape[1]))
    return f"in entry {place}"


def read_safetensors(path: Path) -> Tensors:
    """Read a safetensors file."""
    must_exist(path)
    try:
        return Tensors(path, load_file(path, device="cpu"))
    except Exception as error:  # damaged headers make the reader raise more than its own error
        raise CorruptArtifactError(f"{path} is damaged ({error!s:.200}); {OTHERWISE}") from error


_NUMBERS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")


class _NumberType:
    """Stands for ``numpy.dtype`` when a pickle is read: one plain kind of number."""

    def __init__(self, code: str, *_: object) -> None:
        if code not in _NUMBERS:
            raise pickle.UnpicklingError(f"a NumPy scalar of type {quoted(code)}, no plain number")
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.order, *_ = state  # the version, then the order of the bytes


def _number(kind: _NumberType, content: bytes) -> float:
    """Stands for NumPy's loader of scalars when a pickle is read: the number that its bytes say."""
    (value,) = np.frombuffer(content, dtype=kind.order + kind.code).tolist()
    return float(value)


_PLAIN: list[Any] = [
    (_NumberType, "numpy.dtype"),
    (_number, "numpy._core.multiarray.scalar"),
    (_number, "numpy.core.multiarray.scalar"),
]
"""What torch's unpickler may call besides its own list, and the names of it in files."""


def read_torch(path: Path, archive: IO[bytes] | None = None) -> dict[str, Any]:
    """Read a torch archive of tensors and plain values: ``path``, or the part of it in ``archive``.

    Raises `InvalidInputError`, without running anything, for an archive of other objects.
    """
    must_exist(path)
    try:
        with safe_globals(_PLAIN):
            stored = torch.load(archive or path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        names = pickled_names(path)
        raise InvalidInputError(
            f"{path} is not a file of plain tensors"
            + (f", it also names {listed(names)}" if names else "")
            + "; reading it in any other way could run code that it carries, so it is refused. In "
            "the environment that made it, save its tensors alone, by name, with torch.save",
            field="source",
        ) from error
    except Exception as error:  # damaged bytes make the reader raise whatever it stumbles over
        raise CorruptArtifactError(
            f"{path} cannot be read as a torch archive ({type(error).__name__}); {OTHERWISE}"
        ) from error
    if not isinstance(stored, dict):
        raise CorruptArtifactError(
            f"{path} holds a {type(stored).__name__} instead of named tensors; {OTHERWISE}"
        )
    return stored


def pickled_names(path: Path) -> list[str]:
    """The classes and functions, beyond tensors, that a torch archive names. Loads nothing."""
    try:
        with safe_globals(_PLAIN):
            return sorted(get_unsafe_globals_in_checkpoint(path))
    except Exception:  # not a torch archive, or one in a form that cannot be looked through
        return []

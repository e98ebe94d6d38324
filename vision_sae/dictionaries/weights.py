"""The weights file of a dictionary: named tensors, in float32 or rounded to half precision."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vision_sae.errors import CorruptArtifactError, InvalidInputError
from vision_sae.files import replacing
from vision_sae.models.precision import MOST_LOST, share_lost

WEIGHTS = "weights.safetensors"
DTYPE = "dtype"
"""The key of a manifest's ``dictionary`` that names the precision on disk; float32 when absent."""
HALF = "float16"


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The place of the first NaN or infinity in named tensors; None if all values are finite."""
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            place = (~tensor.isfinite()).nonzero()[0].tolist()
            return f"{name} holds {float(tensor[tuple(place)])} at {place}"
    return None


def write_tensors(directory: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write the weights file into ``directory``.

    Raises `InvalidInputError` for a tensor that holds NaN or infinity.
    """
    if wrong := not_finite(tensors):
        raise InvalidInputError(
            f"this dictionary cannot be saved: {wrong}; train it again, with a lower learning rate",
            field="dictionary",
        )
    # Copies, because safetensors refuses tensors that share memory, as tied weights do.
    copies = {n: t.clone(memory_format=torch.contiguous_format) for n, t in tensors.items()}
    save_file(copies, directory / WEIGHTS)


def read_tensor_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises `CorruptArtifactError`, with the file's name, if it is missing, cut short or no
    safetensors file.
    """
    try:
        return dict(load_file(path))
    except (FileNotFoundError, SafetensorError) as error:
        raise CorruptArtifactError(
            f"{path} is missing or damaged ({error}); delete it, and make it again"
        ) from error


def read_tensors(directory: Path) -> dict[str, Tensor]:
    """The tensors of the weights file in ``directory``, converted from half precision to float32.

    Raises `CorruptArtifactError` for a damaged file, and for a tensor with NaN or infinity.
    """
    stored = read_tensor_file(directory / WEIGHTS)
    if wrong := not_finite(stored):
        raise CorruptArtifactError(f"{directory / WEIGHTS}: {wrong}; train the dictionary again")
    return {name: t.float() if t.dtype == torch.float16 else t for name, t in stored.items()}


def round_to_half(directory: Path) -> None:
    """Rewrite every weights file in and below ``directory`` with its float32 tensors in float16.

    Raises `InvalidInputError` for values that are too large or too small for float16.
    """
    for path in sorted(directory.rglob(WEIGHTS)):
        rounded = {name: _half(name, tensor) for name, tensor in load_file(path).items()}
        with replacing(path) as beside:  # the tensors may be a memory map of the old file
            save_file(rounded, beside)


def _half(name: str, tensor: Tensor) -> Tensor:
    if tensor.dtype != torch.float32:
        return tensor
    rounded = tensor.half()
    if not rounded.isfinite().all():
        raise InvalidInputError(
            f"{name} holds values that float16 cannot hold (largest {float(tensor.abs().max()):g}, "
            f"limit {torch.finfo(torch.float16).max:g}); scale the dictionary down",
            field="dictionary",
        )
    if (lost := share_lost(tensor, rounded)) > MOST_LOST:
        raise InvalidInputError(
            f"{name} holds values too small for float16 (largest {float(tensor.abs().max()):g}): "
            f"its relative error would be {lost:.2g}, more than {MOST_LOST:g}; scale the "
            "dictionary up",
            field="dictionary",
        )
    return rounded

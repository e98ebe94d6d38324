"""Translates names of the library to enum values of the contract."""

from __future__ import annotations

from typing import Any

import torch

from vision_sae.v1 import (
    tensor_pb2,
)


def enum_value(enum: Any, prefix: str, word: str) -> Any:
    """The enum value of a name of the library: ``hard`` is ``SCORE_NEGATIVES_HARD``. The value is
    0, UNSPECIFIED, for a name that this version of the contract lacks."""
    value = enum.DESCRIPTOR.values_by_name.get(f"{prefix}_{word.upper()}")
    return value.number if value else 0


def dtype(kind: torch.dtype) -> tensor_pb2.DType.ValueType:
    """The enum value of a torch dtype; UNSPECIFIED for a dtype that the contract lacks."""
    word = str(kind).removeprefix("torch.")
    value: tensor_pb2.DType.ValueType = enum_value(tensor_pb2.DType, "D_TYPE", word)
    return value

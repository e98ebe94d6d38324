"""NumPy arrays <-> ``vision_sae.v1.Tensor``: little-endian bytes in C order. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vision_sae.errors import InvalidInputError
from vision_sae.v1 import tensor_pb2

_DTYPES: dict[tensor_pb2.DType.ValueType, np.dtype[Any]] = {
    tensor_pb2.D_TYPE_FLOAT32: np.dtype("<f4"),
    tensor_pb2.D_TYPE_FLOAT16: np.dtype("<f2"),
    tensor_pb2.D_TYPE_FLOAT64: np.dtype("<f8"),
    tensor_pb2.D_TYPE_UINT8: np.dtype("u1"),
    tensor_pb2.D_TYPE_INT32: np.dtype("<i4"),
    tensor_pb2.D_TYPE_INT64: np.dtype("<i8"),
    tensor_pb2.D_TYPE_BOOL: np.dtype("?"),
}
_MOST_CELLS = 2**56
_ENUMS = {dtype: enum for enum, dtype in _DTYPES.items()}


def to_proto(
    array: NDArray[Any], *, scale: float | None = None, offset: float | None = None
) -> tensor_pb2.Tensor:
    """Pack an array of any shape; raises `InvalidInputError` for a dtype the contract lacks."""
    tensor = tensor_pb2.Tensor(scale=scale, offset=offset)
    write(tensor, array)
    return tensor


def write(tensor: tensor_pb2.Tensor, array: NDArray[Any]) -> None:
    """Pack an array into an empty tensor, such as a part of a message; see `to_proto`."""
    little = np.asarray(array)
    little = little.astype(little.dtype.newbyteorder("<"), copy=False)
    if little.dtype not in _ENUMS:
        raise InvalidInputError(f"a Tensor cannot hold dtype {array.dtype}", field="tensor")
    tensor.dtype, tensor.data = _ENUMS[little.dtype], little.tobytes()
    tensor.shape.extend(little.shape)


def _cells(shape: Iterable[int]) -> int:
    """What NumPy counts to see whether a shape can be: axes of 0 as of 1."""
    return math.prod(size or 1 for size in shape)


def _dtype_name(number: int) -> str:
    """The enum's name, or the bare number of a value that a newer contract knows."""
    value = tensor_pb2.DType.DESCRIPTOR.values_by_number.get(number)
    return value.name if value else str(number)


def from_proto(tensor: tensor_pb2.Tensor) -> NDArray[Any]:
    """Unpack a tensor; quantised ones (with ``scale`` or ``offset``) come back as float32.

    Raises `InvalidInputError` when the bytes do not fit dtype and shape.
    """
    if tensor.dtype not in _DTYPES:
        raise InvalidInputError(
            f"a Tensor of dtype {_dtype_name(tensor.dtype)} cannot be read; send "
            "FLOAT32, FLOAT16, FLOAT64, UINT8, INT32, INT64 or BOOL",
            field="tensor.dtype",
        )
    # Two negative ones would pass the count of bytes, and so would one that is 0 any others.
    if any(size < 0 for size in tensor.shape) or _cells(tensor.shape) > _MOST_CELLS:
        raise InvalidInputError(
            f"a Tensor has the shape {list(tensor.shape)}; sizes are neither negative nor more "
            "than a computer addresses",
            field="tensor.shape",
        )
    dtype = _DTYPES[tensor.dtype]
    expected = math.prod(tensor.shape) * dtype.itemsize
    if len(tensor.data) != expected:
        raise InvalidInputError(
            f"a Tensor of shape {list(tensor.shape)} and {dtype} has {expected} bytes, "
            f"not {len(tensor.data)}",
            field="tensor.data",
        )
    array = np.frombuffer(tensor.data, dtype=dtype).reshape(tuple(tensor.shape))
    if tensor.HasField("scale") or tensor.HasField("offset"):
        scale = tensor.scale if tensor.HasField("scale") else 1.0
        return np.asarray(array.astype(np.float32) * np.float32(scale) + np.float32(tensor.offset))
    return np.asarray(array)

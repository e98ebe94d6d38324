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
    """Pack an array into an empty tensor, such as a field of a message; see `to_proto`."""
    little = np.asarray(array)
    little = little.astype(little.dtype.newbyteorder("<"), copy=False)
    if little.dtype not in _ENUMS:
        raise InvalidInputError(f"a Tensor cannot hold dtype {array.dtype}", field="tensor")
    tensor.dtype, tensor.data = _ENUMS[little.dtype], little.tobytes()
    tensor.shape.extend(little.shape)


def _cells(shape: Iterable[int]) -> int:
    """The number of cells by which NumPy judges a shape: an axis of size 0 counts as 1."""
    return math.prod(size or 1 for size in shape)


def _dtype_name(number: int) -> str:
    """The name of an enum value; the bare number for a value of a newer contract."""
    value = tensor_pb2.DType.DESCRIPTOR.values_by_number.get(number)
    return value.name if value else str(number)


def from_proto(tensor: tensor_pb2.Tensor, *, field: str = "tensor") -> NDArray[Any]:
    """Unpack a tensor; quantised ones (with ``scale`` or ``offset``) come back as float32.

    Raises `InvalidInputError` when the bytes do not fit dtype and shape, and for NaN or infinity;
    ``field`` is what the request calls the tensor.
    """
    if tensor.dtype not in _DTYPES:
        raise InvalidInputError(
            f"a Tensor of dtype {_dtype_name(tensor.dtype)} cannot be read; send "
            "FLOAT32, FLOAT16, FLOAT64, UINT8, INT32, INT64 or BOOL",
            field=f"{field}.dtype",
        )
    # The count of bytes below would accept two negative sizes, and any sizes beside a 0.
    if any(size < 0 for size in tensor.shape) or _cells(tensor.shape) > _MOST_CELLS:
        raise InvalidInputError(
            f"a Tensor has the shape {list(tensor.shape)}; sizes are neither negative nor more "
            "than a computer addresses",
            field=f"{field}.shape",
        )
    dtype = _DTYPES[tensor.dtype]
    expected = math.prod(tensor.shape) * dtype.itemsize
    if len(tensor.data) != expected:
        raise InvalidInputError(
            f"a Tensor of shape {list(tensor.shape)} and {dtype} has {expected} bytes, "
            f"not {len(tensor.data)}",
            field=f"{field}.data",
        )
    array = np.frombuffer(tensor.data, dtype=dtype).reshape(tuple(tensor.shape))
    if tensor.HasField("scale") or tensor.HasField("offset"):
        scale = tensor.scale if tensor.HasField("scale") else 1.0
        with np.errstate(over="ignore", invalid="ignore"):  # infinity and NaN are refused below
            array = array.astype(np.float32) * np.float32(scale) + np.float32(tensor.offset)
    return _finite(np.asarray(array), field)


def read_floats(tensor: tensor_pb2.Tensor, *, field: str) -> NDArray[np.float32]:
    """`from_proto` as float32; raises `InvalidInputError` for numbers that float32 cannot hold."""
    with np.errstate(over="ignore"):
        return _finite(from_proto(tensor, field=field).astype(np.float32), field)


def _finite(array: NDArray[Any], field: str) -> NDArray[Any]:
    """Return ``array``; raises `InvalidInputError`, with the first NaN or infinity in it."""
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        place = tuple(np.argwhere(~np.isfinite(array))[0].tolist())
        raise InvalidInputError(
            f"a Tensor holds {array[place]} at {list(place)}; send finite numbers that float32 can "
            "hold",
            field=field,
        )
    return array

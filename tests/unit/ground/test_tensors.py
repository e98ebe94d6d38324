from __future__ import annotations

import numpy as np
import pytest

from vision_sae.errors import InvalidInputError
from vision_sae.tensors import from_proto, to_proto
from vision_sae.v1 import tensor_pb2


def test_bytes_are_little_endian() -> None:
    assert to_proto(np.array([1], dtype=np.int32)).data == b"\x01\x00\x00\x00"


def test_offset_alone_is_added() -> None:
    assert from_proto(to_proto(np.array([1, 2], dtype=np.uint8), offset=0.5)).tolist() == [1.5, 2.5]


def test_scale_alone_is_multiplied() -> None:
    assert from_proto(to_proto(np.array([1, 2], dtype=np.uint8), scale=0.5)).tolist() == [0.5, 1.0]


@pytest.mark.parametrize("dtype", ["complex64", "uint16"])
def test_dtype_outside_the_contract_is_refused_by_name(dtype: str) -> None:
    with pytest.raises(InvalidInputError, match=dtype):
        to_proto(np.zeros(2, dtype=dtype))


def test_unspecified_dtype_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="UNSPECIFIED"):
        from_proto(tensor_pb2.Tensor(shape=[1], data=b"\0"))


@pytest.mark.parametrize("shape", [[-1, -1], [0, 2**62], [0, 2**31, 2**31], [0, -(2**63)]])
def test_a_shape_that_cannot_be_is_refused(shape: list[int]) -> None:
    with pytest.raises(InvalidInputError, match="neither negative nor more") as refused:
        from_proto(tensor_pb2.Tensor(dtype=tensor_pb2.D_TYPE_UINT8, shape=shape))
    assert refused.value.field == "tensor.shape"


def test_dtype_of_a_newer_contract_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="99"):
        from_proto(tensor_pb2.Tensor(dtype=99, shape=[1], data=b"\0"))  # type: ignore[arg-type]

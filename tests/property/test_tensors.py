from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vision_sae.errors import InvalidInputError
from vision_sae.tensors import from_proto, to_proto
from vision_sae.v1 import tensor_pb2

DTYPES = ("float32", "float16", "float64", "uint8", "int32", "int64", "bool")
FINITE = {"allow_nan": False, "allow_infinity": False}
ARRAYS = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(
        dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0), elements=FINITE
    )
)


@given(ARRAYS)
def test_round_trip_keeps_dtype_shape_and_bits(array: np.ndarray) -> None:
    back = from_proto(to_proto(array))
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()


@given(ARRAYS)
def test_big_endian_input_sends_the_same_bytes(array: np.ndarray) -> None:
    swapped = array.astype(array.dtype.newbyteorder(">"))
    assert to_proto(swapped) == to_proto(array)


@given(hnp.arrays("int32", (3, 4)))
def test_strided_input_sends_its_values_in_c_order(array: np.ndarray) -> None:
    assert np.array_equal(from_proto(to_proto(array.T[::2])), array.T[::2])


@given(
    hnp.arrays("uint8", hnp.array_shapes(max_dims=2)),
    st.floats(0.0078125, 4, width=32),
    st.floats(-8, 8, width=32),
)
def test_quantised_values_are_scale_times_stored_plus_offset(
    array: np.ndarray, scale: float, offset: float
) -> None:
    back = from_proto(to_proto(array, scale=scale, offset=offset))
    assert back.dtype == np.float32
    np.testing.assert_allclose(
        back, array.astype(np.float64) * scale + offset, rtol=1e-5, atol=1e-4
    )


@given(ARRAYS, st.integers(-9, 9).filter(bool))
def test_bytes_that_do_not_fit_the_shape_are_refused(array: np.ndarray, extra: int) -> None:
    tensor = to_proto(array)
    if extra < 0 and not tensor.data:
        return
    tensor.data = tensor.data[:extra] if extra < 0 else tensor.data + bytes(extra)
    with pytest.raises(InvalidInputError, match="bytes"):
        from_proto(tensor)


@given(st.lists(st.integers(-5, -1), min_size=2, max_size=2))
def test_negative_sizes_are_refused(shape: list[int]) -> None:
    # Their product is positive, so the count of bytes alone would pass.
    data = bytes(shape[0] * shape[1])
    tensor = tensor_pb2.Tensor(dtype=tensor_pb2.D_TYPE_UINT8, shape=shape, data=data)
    with pytest.raises(InvalidInputError, match="shape"):
        from_proto(tensor)

"""The Triton kernels of training beside torch's operations, in Triton's interpreter."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from tests.worlds import triton_cases

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("triton") is None, reason="Triton exists for Linux alone"),
]


@pytest.fixture(scope="module")
def measured() -> triton_cases.Errors:
    return triton_cases.interpreted()


@pytest.mark.parametrize("case", [case.name for case in triton_cases.CASES])
@pytest.mark.parametrize("kernel", triton_cases.KERNELS)
def test_a_kernel_agrees_with_torch(measured: triton_cases.Errors, kernel: str, case: str) -> None:
    assert measured[kernel][case] <= 1e-5

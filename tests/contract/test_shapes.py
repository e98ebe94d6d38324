"""A wrong shape ends a test, wherever a function says its shapes."""

from __future__ import annotations

import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Float, Int, TypeCheckError, jaxtyped
from torch import Tensor

from tests import shapes
from vision_sae.dictionaries.protocol import to_codes


def product(rows: Float[Tensor, "N D"], columns: Float[Tensor, "D F"], _note: str) -> Tensor:
    return rows @ columns


def test_arrays_are_checked_and_other_arguments_are_left_to_mypy() -> None:
    checked = jaxtyped(product, typechecker=shapes.arrays_checked)
    assert checked(torch.ones(2, 3), torch.ones(3, 4), 5).shape == (2, 4)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong", [torch.ones(4, 3), torch.ones(3), torch.ones(3, 4, dtype=torch.int64)]
)
def test_a_wrong_size_rank_or_type_is_refused(wrong: Tensor) -> None:
    checked = jaxtyped(product, typechecker=shapes.arrays_checked)
    with pytest.raises((TypeCheckError, BeartypeCallHintViolation)):
        checked(torch.ones(2, 3), wrong, "")


def test_a_function_without_arrays_stays_as_it_is() -> None:
    def length(text: str) -> int:
        return len(text)

    assert shapes.arrays_checked(length) is length


def test_arrays_inside_other_types_count() -> None:
    def first(parts: object) -> int:
        return len(parts)

    first.__annotations__ = {"parts": list[Int[Tensor, " N"]]}
    assert shapes.arrays_checked(first) is not first


def test_the_library_is_checked_in_this_very_run() -> None:
    with pytest.raises((TypeCheckError, BeartypeCallHintViolation)):
        to_codes(torch.ones(3))

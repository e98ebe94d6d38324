"""Numba compilation, for loops that no library offers and that Python runs too slowly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit

Function = TypeVar("Function", bound=Callable[..., Any])

_FAST = {"contract", "reassoc", "nsz", "arcp"}
"""LLVM flags that let sums be vectorised. "nnan" and "ninf" are left out: NaN must stay visible."""


def compiled(function: Function) -> Function:
    """Compile a function on its first use; later processes reuse the machine code from a cache.

    The compiled function releases the interpreter's lock, so that threads run in parallel.
    """
    decorate = njit(nogil=True, cache=True, fastmath=_FAST, error_model="numpy")
    return cast(Function, decorate(function))

"""Loops compiled by Numba, for what no library offers and Python is too slow for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit

Function = TypeVar("Function", bound=Callable[..., Any])

_FAST = {"contract", "reassoc", "nsz", "arcp"}
"""Freedoms that let sums be vectorised; not "nnan" and "ninf": NaN must stay visible."""


def compiled(function: Function) -> Function:
    """Compile on first use, keep the machine code for the next process, and run without the
    interpreter's lock, so that threads run side by side."""
    made = njit(nogil=True, cache=True, fastmath=_FAST, error_model="numpy")(function)
    return cast(Function, made)

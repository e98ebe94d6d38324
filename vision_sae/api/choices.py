"""Checks of arguments with a fixed set of values, and of counts."""

from __future__ import annotations

from typing import Any, get_args

from vision_sae.errors import InvalidInputError, quoted


def check_choice(value: object, choices: Any, field: str) -> None:
    """Raise `InvalidInputError` for a value that is not in a ``Literal``."""
    known = get_args(choices)
    if value not in known:
        raise InvalidInputError(
            f"{field} is one of {', '.join(map(str, known))}, not {quoted(value)}", field=field
        )


def check_top(top: int) -> None:
    """Raise `InvalidInputError` for a number of results below 1."""
    if top < 1:
        raise InvalidInputError(f"top={top} shows nothing; give 1 or more", field="top")

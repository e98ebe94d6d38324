"""Checks the arguments of callers before a request is sent."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from vision_sae.errors import InvalidInputError, VisionSaeError

P = ParamSpec("P")
R = TypeVar("R")

_NO_DEADLINE = 10 * 365 * 24 * 3600
"""Seconds above which there is no deadline: gRPC takes a very late deadline for a past one."""


def deadline(timeout: float) -> float | None:
    """The deadline of a call in seconds; None for ``inf``. Raises `InvalidInputError`."""
    if not timeout > 0:
        raise InvalidInputError(
            f"a timeout is a number of seconds above 0, or inf for none, not {timeout}",
            field="timeout",
        )
    return float(timeout) if timeout < _NO_DEADLINE else None


def bearer(token: str) -> str:
    """The value of the authorization header with a token. Raises `InvalidInputError`."""
    if not (token.isascii() and token.isprintable()):
        raise InvalidInputError(
            "a token is ASCII, without line breaks and control characters; copy it again",
            field="token",
        )
    return f"Bearer {token}"


def address(where: str) -> str:
    """The address of a server, HOST:PORT. Raises `InvalidInputError` for an empty one."""
    if not where.strip():
        raise InvalidInputError("the address is empty; give HOST:PORT", field="address")
    return where


def sendable(build: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function that builds a message: an argument that no message can hold, such as a
    number out of range or a text outside of Unicode, raises `InvalidInputError` with its name.

    The errors of protobuf contain only the value.
    """
    signature = inspect.signature(build)

    @wraps(build)
    def built(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return build(*args, **kwargs)
        except VisionSaeError:
            raise
        except UnicodeError as error:
            arguments = signature.bind(*args, **kwargs).arguments
            name = next((k for k, v in arguments.items() if not _encodes(v)), "a text")
            raise InvalidInputError(
                f"{name} holds a character that is not Unicode; write it in UTF-8", field=name
            ) from error
        except (ValueError, OverflowError) as error:
            arguments = signature.bind(*args, **kwargs).arguments
            name = next(
                (k for k, v in arguments.items() if str(error).endswith(f" {v}")), "a number"
            )
            raise InvalidInputError(f"{name} is out of range ({error})", field=name) from error

    return built


def _encodes(value: object) -> bool:
    try:
        str(value).encode()
    except UnicodeError:
        return False
    return True


def seconds(value: float, field: str) -> float:
    """A limit in seconds that a duration can hold; 0 means no limit. Raises `InvalidInputError`."""
    if not 0 <= value < _NO_DEADLINE or not math.isfinite(value):
        raise InvalidInputError(
            f"{field} is a number of seconds from 0, which is no limit, to {_NO_DEADLINE:,}, not "
            f"{value}",
            field=field,
        )
    return float(value)

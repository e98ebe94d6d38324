"""Shapes are checked while tests run: what ``Float[Tensor, "N D"]`` says must be so.

The import hook of jaxtyping wraps the functions, data classes and methods of the modules that use
jaxtyping. beartype then checks the arrays among their arguments and results; the other annotations
are mypy's to check. Nothing is wrapped outside of tests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, get_args

from beartype import beartype
from jaxtyping import AbstractArray, install_import_hook

from tests import rooms

F = TypeVar("F", bound=Callable[..., Any])


def _holds_an_array(annotation: object) -> bool:
    if isinstance(annotation, type) and issubclass(annotation, AbstractArray):
        return True
    return any(_holds_an_array(part) for part in get_args(annotation))


def arrays_checked(function: F) -> F:
    """``function`` with a check of the arrays among its arguments and its result."""
    kept = {k: v for k, v in function.__annotations__.items() if _holds_an_array(v)}
    if not kept:
        return function
    function.__annotations__ = kept
    return beartype(function)


def modules_with_shapes() -> list[str]:
    """Our modules that say shapes by jaxtyping."""
    return [
        name
        for name, path in rooms.modules().items()
        if "from jaxtyping import" in path.read_text("utf-8")
    ]


def check_shapes() -> None:
    """Check shapes in every module that is imported from now on."""
    if modules := modules_with_shapes():
        install_import_hook(modules, "tests.shapes.arrays_checked")

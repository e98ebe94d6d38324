"""Hooks that read or change a site during one forward pass, and are always removed.

All of them are context managers. A hook acts only for the thread that opened it, so concurrent
calls on one model never see each other's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

Edit = Callable[[Tensor], Tensor]
"""Site vectors -> new site vectors of the same shape, (B, T, D) where a hook calls it."""


def at_patches(special: int, change: Edit) -> Edit:
    """An edit of the patches alone: ``change`` maps their vectors (N, D) to new ones."""

    def edit(vectors: Tensor) -> Tensor:
        edited = vectors.clone()
        patches = vectors[:, special:]
        edited[:, special:] = change(patches.flatten(0, 1)).reshape(patches.shape)
        return edited

    return edit


class StopForward(Exception):
    """Raised inside a forward pass once every wanted site has been captured."""


@dataclass(frozen=True)
class Tap:
    """Where a site lives in a module tree.

    ``part`` says which tensor of ``module`` it is: its ``output``, its first ``input``, or their
    difference (the block ``update``).
    """

    module: nn.Module
    part: Literal["update", "output", "input"]


def _first(value: Any) -> Tensor:
    """The tensor of a module's output, which some modules wrap in a tuple."""
    tensor: Tensor = value[0] if isinstance(value, tuple) else value
    return tensor


def _rewrap(output: Any, tensor: Tensor) -> Any:
    return (tensor, *output[1:]) if isinstance(output, tuple) else tensor


@contextmanager
def capturing(taps: dict[str, Tap], *, stop: bool = False) -> Iterator[dict[str, Tensor]]:
    """Collect the tensors of ``taps`` during the forward passes of the ``with`` body.

    Yields a dictionary that fills as modules run: {site: tensor (B, T, D)}. With ``stop``, the
    pass is abandoned by `StopForward` (swallowed here) once all taps have been filled: blocks
    behind the last site are never computed.
    """
    owner = threading.get_ident()
    captured: dict[str, Tensor] = {}

    def record(site: str, value: Tensor) -> None:
        captured[site] = value
        if stop and len(captured) == len(taps):
            raise StopForward

    def attach(site: str, tap: Tap) -> Any:
        def before(_module: nn.Module, args: tuple[Any, ...]) -> None:
            if threading.get_ident() == owner:
                record(site, args[0])

        def after(_module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if threading.get_ident() == owner:
                value = _first(output)
                record(site, value - args[0] if tap.part == "update" else value)

        if tap.part == "input":
            return tap.module.register_forward_pre_hook(before)
        return tap.module.register_forward_hook(after)

    with ExitStack() as stack:
        for site, tap in taps.items():
            stack.enter_context(attach(site, tap))
        try:
            yield captured
        except StopForward:
            return


@contextmanager
def replacing_site(tap: Tap, edit: Edit) -> Iterator[None]:
    """Pass the tensor of ``tap`` through ``edit`` during the forward passes of the body.

    What is written back is ``x + (edit(x) - x)``, so positions that ``edit`` leaves alone stay
    bit-identical, and an ``edit`` that returns its argument changes nothing at all.
    """
    owner = threading.get_ident()

    def before(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if threading.get_ident() != owner:
            return None
        edited = edit(args[0])
        return None if edited is args[0] else (args[0] + (edited - args[0]), *args[1:])

    def after(_module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if threading.get_ident() != owner:
            return None
        value = _first(output)
        vectors = value - args[0] if tap.part == "update" else value
        edited = edit(vectors)
        return None if edited is vectors else _rewrap(output, value + (edited - vectors))

    handle: torch.utils.hooks.RemovableHandle
    if tap.part == "input":
        handle = tap.module.register_forward_pre_hook(before)
    else:
        handle = tap.module.register_forward_hook(after)
    with handle:
        yield

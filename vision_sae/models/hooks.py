"""Hooks that read or change a site during one forward pass, and are always removed.

All of them are context managers. A hook acts only in the thread that opened it, so concurrent
calls on one model never see the hooks of others.
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
    maps: bool = False
    """Whether the tensor is a stack of maps (B, D, H, W), whose positions are then the tokens of
    the site, row by row."""

    def vectors(self, tensor: Tensor) -> Tensor:
        """The module's tensor as site vectors (B, T, D)."""
        return tensor.flatten(2).transpose(1, 2) if self.maps else tensor

    def like(self, vectors: Tensor, tensor: Tensor) -> Tensor:
        """Site vectors (B, T, D) in the shape of the module's ``tensor``."""
        return vectors.transpose(1, 2).reshape(tensor.shape) if self.maps else vectors


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
    enough = StopForward()  # this capture's own: captures may be nested

    def record(site: str, value: Tensor) -> None:
        captured[site] = taps[site].vectors(value)
        if stop and len(captured) == len(taps):
            raise enough

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
        except StopForward as stopped:
            if stopped is not enough:
                raise


@contextmanager
def replacing_site(tap: Tap, edit: Edit) -> Iterator[None]:
    """Pass the tensor of ``tap`` through ``edit`` during the forward passes of the body.

    What is written back is ``x + (edit(x) - x)``, so positions that ``edit`` leaves alone stay
    bit-identical, and an ``edit`` that returns its argument changes nothing at all.
    """
    owner = threading.get_ident()

    def changed(tensor: Tensor, whole: Tensor) -> Tensor | None:
        """``whole`` with the change that ``edit`` makes to ``tensor``; None when it makes none."""
        vectors = tap.vectors(tensor)
        edited = edit(vectors)
        return None if edited is vectors else whole + tap.like(edited - vectors, whole)

    def before(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if threading.get_ident() != owner:
            return None
        replaced = changed(args[0], args[0])
        return None if replaced is None else (replaced, *args[1:])

    def after(_module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if threading.get_ident() != owner:
            return None
        value = _first(output)
        replaced = changed(value - args[0] if tap.part == "update" else value, value)
        return None if replaced is None else _rewrap(output, replaced)

    handle: torch.utils.hooks.RemovableHandle
    if tap.part == "input":
        handle = tap.module.register_forward_pre_hook(before)
    else:
        handle = tap.module.register_forward_hook(after)
    with handle:
        yield


@contextmanager
def adding_to_site(tap: Tap, addition: Callable[[], Tensor | None]) -> Iterator[None]:
    """Add the result of ``addition`` to the output of ``tap.module``, without computing the site.

    ``addition()`` is called once in each forward pass of the body. It returns (B, T, D), which
    broadcasts over B and T, or None for no change.
    """
    owner = threading.get_ident()

    def after(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        added = addition() if threading.get_ident() == owner else None
        if added is None:
            return None
        value = _first(output)
        if tap.maps:
            batch, _, height, width = value.shape
            added = added.expand(batch, height * width, -1)
        return _rewrap(output, value + tap.like(added.to(value.dtype), value))

    with tap.module.register_forward_hook(after):
        yield

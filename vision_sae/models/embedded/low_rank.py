"""Low-rank updates of frozen linear layers: learned beside them, shipped small, merged exactly.

LoRA (Hu et al. 2021, arXiv:2106.09685): a frozen weight W is used as W + U V with U (out, rank) and
V (rank, in). What ships are U and V in half precision. Merging them gives the same bits on every
machine: half-precision numbers are multiples of 2^-24, so the products and their sums are exact in
float64, in any order, and only the final weight is rounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

UP, DOWN = ".up", ".down"


class LowRankLinear(nn.Module):
    """A frozen linear layer and its update, which begins as nothing."""

    def __init__(self, frozen: nn.Linear, rank: int) -> None:
        super().__init__()
        self.frozen = frozen.requires_grad_(False)
        self.down = nn.Parameter(torch.empty(rank, frozen.in_features))
        self.up = nn.Parameter(torch.zeros(frozen.out_features, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)"""
        update = nn.functional.linear(nn.functional.linear(x, self.down), self.up)
        return cast(Tensor, self.frozen(x)) + update


def add_updates(module: nn.Module, rank: int, chosen: Callable[[str], bool]) -> None:
    """Put a `LowRankLinear` in the place of every linear layer whose name is ``chosen``."""
    linears = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    for name in filter(chosen, linears):
        parent = module.get_submodule(name.rpartition(".")[0])
        setattr(
            parent,
            name.rpartition(".")[2],
            LowRankLinear(getattr(parent, name.rpartition(".")[2]), rank),
        )


def trained_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Everything of ``module`` that requires a gradient, in half precision, by the name that the
    module without updates knows it by; an update's factors end in `UP` and `DOWN`."""
    named: dict[str, Any] = dict(module.named_parameters())
    updated = {name for name, part in module.named_modules() if isinstance(part, LowRankLinear)}
    result = {}
    for name, parameter in named.items():
        if parameter.requires_grad:
            parent, _, last = name.rpartition(".")
            plain = f"{parent}.weight.{last}" if parent in updated else name
            result[plain] = parameter.detach().to(torch.float16).contiguous()
    return result


def merged(state: Mapping[str, Tensor], trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``state`` with what was trained put in its place: float32, the same bits everywhere."""
    result = dict(state)
    for name, tensor in trained.items():
        if name.endswith(UP):
            weight = name.removesuffix(UP)
            update = tensor.double() @ trained[weight + DOWN].double()
            result[weight] = (state[weight].double() + update).float()
        elif not name.endswith(DOWN):
            result[name] = tensor.float()
    return result

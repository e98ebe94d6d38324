"""What every dictionary can do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor


class Codes(NamedTuple):
    """Sparse feature activations of N site vectors, at most K each."""

    indices: Tensor
    """Feature numbers (N, K), int64; those that fire ascend in each row."""
    values: Tensor
    """Activations (N, K), float32, >= 0; 0 in the slots of a row that fewer features fill."""


@runtime_checkable
class Dictionary(Protocol):
    """Encodes a site vector into non-negative feature activations, and decodes it back."""

    architecture: str
    """``topk``, ..."""

    @property
    def dim(self) -> int:
        """Length D of a site vector."""
        ...

    @property
    def width(self) -> int:
        """Number F of features."""
        ...

    @property
    def decoder(self) -> Tensor:
        """Feature directions W_dec (F, D), float32."""
        ...

    @property
    def bias(self) -> Tensor:
        """What the zero code decodes to, b_dec (D), float32."""
        ...

    def encode(self, vectors: Tensor) -> Codes:
        """Site vectors (N, D) -> `Codes`."""
        ...

    def decode(self, codes: Codes) -> Tensor:
        """`Codes` of N vectors -> reconstructions (N, D), float32."""
        ...

    def slope(self, feature: int) -> Tensor | None:
        """The gradient (D) of a feature's activation by the site vector, wherever it fires; None
        when it depends on what else fires."""
        ...

    def save(self, directory: Path) -> dict[str, Any]:
        """Write weights into ``directory``; returns what the manifest must say to load them."""
        ...


@dataclass(frozen=True, eq=False)
class SiteDictionary:
    """A dictionary, and the site of a model that its features are of."""

    dictionary: Dictionary
    site: str


def to_codes(activations: Tensor) -> Codes:
    """Dense activations (N, F), whose positive entries fire -> `Codes`, K as large as needed."""
    fires = activations > 0
    counts = fires.sum(1)
    rows, features = fires.nonzero(as_tuple=True)
    slots = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    shape = (len(activations), int(counts.max()) if len(counts) else 0)
    indices = torch.zeros(shape, dtype=torch.int64, device=rows.device)
    values = torch.zeros(shape, dtype=torch.float32, device=rows.device)
    indices[rows, slots] = features
    values[rows, slots] = activations[rows, features].float()
    return Codes(indices, values)


def join(parts: Sequence[Codes]) -> Codes:
    """The codes of consecutive batches as those of one, padded to the widest."""
    slots = max(part.indices.shape[1] for part in parts)
    padded = [[F.pad(t, (0, slots - t.shape[1])) for t in part] for part in parts]
    return Codes(torch.cat([i for i, _ in padded]), torch.cat([v for _, v in padded]))


def to_dense(codes: Codes, width: int) -> Tensor:
    """`Codes` of N vectors -> activations (N, F). For small N: this is what codes avoid."""
    dense = torch.zeros(len(codes.indices), width, device=codes.values.device)
    return dense.scatter_add_(1, codes.indices, codes.values)

"""What every dictionary can do."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor


class Codes(NamedTuple):
    """Sparse feature activations of N site vectors, at most k each."""

    indices: Tensor
    """Feature numbers (N, k), int64, ascending in each row."""
    values: Tensor
    """Activations (N, k), float32, >= 0; 0 where fewer than k features fire."""


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

    def save(self, directory: Path) -> dict[str, Any]:
        """Write weights into ``directory``; returns what the manifest must say to load them."""
        ...

"""What every dictionary can do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from vision_sae.errors import FeatureNotFoundError


class Codes(NamedTuple):
    """Sparse feature activations of N site vectors, at most K each."""

    indices: Int64[Tensor, "N K"]
    """Feature numbers; those that fire ascend in each row."""
    values: Float32[Tensor, "N K"]
    """Activations >= 0; 0 in the slots of a row that fewer features fill."""


@runtime_checkable
class Dictionary(Protocol):
    """Encodes a site vector into non-negative feature activations, and decodes it back."""

    architecture: str
    """The name of the architecture, such as ``topk``."""

    @property
    def dim(self) -> int:
        """Length D of a site vector."""
        ...

    @property
    def width(self) -> int:
        """Number F of features."""
        ...

    @property
    def decoder(self) -> Float32[Tensor, "F D"]:
        """Feature directions W_dec."""
        ...

    @property
    def bias(self) -> Float32[Tensor, " D"]:
        """The reconstruction b_dec of a code without active features."""
        ...

    def encode(self, vectors: Float[Tensor, "N D"]) -> Codes:
        """Site vectors -> `Codes`."""
        ...

    def decode(self, codes: Codes) -> Float32[Tensor, "N D"]:
        """`Codes` of N vectors -> reconstructions."""
        ...

    def gradient(self, feature: int) -> Float[Tensor, " D"] | None:
        """The gradient of a feature's activation by the site vector, wherever the feature fires.

        None if the gradient depends on which other features fire.
        """
        ...

    def to(self, device: torch.device) -> Dictionary:
        """The same dictionary with its weights on ``device``."""
        ...

    def save(self, directory: Path) -> dict[str, Any]:
        """Write the weights into ``directory``. Returns the manifest entries that loading needs."""
        ...


def check_feature(feature: int, width: int, name: str, field: str = "feature") -> None:
    """Raise `FeatureNotFoundError`, which names ``field``, for a number that is not one of the
    ``width`` features of the dictionary called ``name``."""
    if not 0 <= feature < width:
        raise FeatureNotFoundError(
            f"{name} has features 0 to {width - 1}, not {feature}", field=field
        )


@dataclass(frozen=True, eq=False)
class SiteDictionary:
    """A dictionary, and the site of the model whose vectors the dictionary encodes."""

    dictionary: Dictionary
    site: str


def to_codes(activations: Float[Tensor, "N F"]) -> Codes:
    """Dense activations -> `Codes` of the positive entries; K is the largest count in a row."""
    if activations.device.type != "cpu":
        return _to_codes_with_one_wait(activations)
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


def _to_codes_with_one_wait(activations: Float[Tensor, "N F"]) -> Codes:
    """`to_codes` on a GPU, where only the number of slots is waited for (not yet run there)."""
    fires, width = activations > 0, activations.shape[1]
    slots = _largest_count(fires.sum(1))
    numbers = torch.arange(width, dtype=torch.int32, device=activations.device)
    # The smallest numbers of features that fire; `width` stands for the others.
    indices = torch.where(fires, numbers, width).topk(slots, dim=1, largest=False).values.long()
    used = indices < width
    indices = indices * used
    return Codes(indices, activations.gather(1, indices).float() * used)


def _largest_count(counts: Int64[Tensor, " N"]) -> int:
    """The largest of the counts, read from the device; 0 without any."""
    return int(counts.max()) if len(counts) else 0


def join(parts: Sequence[Codes]) -> Codes:
    """The codes of consecutive batches as one batch, padded to the widest."""
    slots = max(part.indices.shape[1] for part in parts)
    padded = [[F.pad(t, (0, slots - t.shape[1])) for t in part] for part in parts]
    return Codes(torch.cat([i for i, _ in padded]), torch.cat([v for _, v in padded]))


def to_dense(codes: Codes, width: int) -> Float32[Tensor, "N F"]:
    """`Codes` of N vectors -> dense activations. For small N: the result takes N F numbers."""
    dense = torch.zeros(len(codes.indices), width, device=codes.values.device)
    return dense.scatter_add_(1, codes.indices, codes.values)

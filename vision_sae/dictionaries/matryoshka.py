"""Matryoshka sparse autoencoder: nested dictionaries in one (Bussmann et al. 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from vision_sae.dictionaries.protocol import Codes
from vision_sae.dictionaries.topk import TopKSae
from vision_sae.errors import InvalidInputError


def prefix_widths(shares: Sequence[float], width: int) -> tuple[int, ...]:
    """Shares of the dictionary -> the widths of its nested prefixes, rising, the last ``width``."""
    ends = tuple(round(share * width) for share in shares)
    rising = all(a < b for a, b in zip((0, *ends), ends, strict=False))
    if not ends or not rising or ends[-1] != width:
        raise InvalidInputError(
            f"prefixes {tuple(shares)} of {width} features give the widths {ends}; give rising "
            "shares that end in 1, each worth at least one feature more than the one before",
            field="prefixes",
        )
    return ends


class MatryoshkaSae(TopKSae):
    """A TopK autoencoder whose first features, up to each prefix, reconstruct by themselves.

    General features come to stand in the short prefixes, special ones behind.
    """

    architecture = "matryoshka"

    def __init__(self, *, k: int, prefixes: Sequence[int], **weights: Tensor) -> None:
        """Take the weights of `TopKSae`, and the widths of the nested prefixes, the last F."""
        super().__init__(k=k, **weights)
        self.prefixes = tuple(prefixes)

    def settings(self) -> dict[str, Any]:
        """k and the prefixes."""
        return super().settings() | {"prefixes": list(self.prefixes)}

    def within(self, codes: Codes, prefix: int) -> Codes:
        """The codes with only the features of prefix number ``prefix``; decode them for its own
        reconstruction."""
        inside = codes.indices < self.prefixes[prefix]
        return Codes(codes.indices, codes.values * inside)

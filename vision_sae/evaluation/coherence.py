"""How similar the directions of one dictionary are; in an incoherent dictionary, no two are
alike."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32
from torch import Tensor

_BLOCK = 1024
"""Rows compared with all others at a time: bounds memory by this many rows of F numbers."""


def max_cosine_to_others(
    rows: Float[Tensor, "F D"], *, block: int = _BLOCK
) -> Float32[Tensor, " F"]:
    """The largest cosine of each row with another row.

    A single row has 0; a row of zeros has cosine 0 with every other row.
    """
    unit = F.normalize(rows.float(), dim=1)
    if len(unit) < 2:
        return torch.zeros(len(unit))
    largest = []
    for start in range(0, len(unit), block):
        cosines = unit[start : start + block] @ unit.T
        cosines.diagonal(start).fill_(-torch.inf)
        largest.append(cosines.max(1).values)
    return torch.cat(largest)


def average_max_decoder_cosine_sim(decoder: Float[Tensor, "F D"]) -> float:
    """Mean over the features of the largest cosine of their decoder row with another one.

    The name is SAEBench's. Time O(F^2 D), memory O(F) beyond the decoder.
    """
    return float(max_cosine_to_others(decoder).double().mean())

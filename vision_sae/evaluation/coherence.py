"""How alike the directions of one dictionary are: an incoherent dictionary says nothing twice."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_BLOCK = 1024
"""Rows compared with all others at a time: bounds memory by this many rows of F numbers."""


def max_cosine_to_others(rows: Tensor, *, block: int = _BLOCK) -> Tensor:
    """The largest cosine of each row (F, D) with ANOTHER row -> (F), float32.

    0 for the only row there is; a row of zeros has cosine 0 with every other.
    """
    unit = F.normalize(rows.float(), dim=1)
    if len(unit) < 2:
        return torch.zeros(len(unit))
    found = []
    for start in range(0, len(unit), block):
        cosines = unit[start : start + block] @ unit.T
        cosines.diagonal(start).fill_(-torch.inf)
        found.append(cosines.max(1).values)
    return torch.cat(found)


def average_max_decoder_cosine_sim(decoder: Tensor) -> float:
    """Mean over the features of the largest cosine of their decoder row with another one.

    ``decoder`` (F, D). The name is SAEBench's. Time O(F^2 D), memory O(F) beyond the decoder.
    """
    return float(max_cosine_to_others(decoder).double().mean())

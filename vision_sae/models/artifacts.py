"""Artifacts: patches that a vision transformer uses to keep what is true of the whole picture.

Large ViTs without registers turn a few patches of plain background into such stores; they give
themselves away by the length of their vectors (Darcet et al. 2024, Vision Transformers Need
Registers, arXiv:2309.16588). A map that lights up there says nothing about the place.
"""

from __future__ import annotations

from torch import Tensor

_TIMES = 4.0
"""How many times as long as the median vector of its picture an artifact is at least. (In the
source's figure for DINOv2-g ordinary vectors are below 100, artifacts above 150 to 500.)"""


def artifacts(vectors: Tensor) -> Tensor:
    """Which of the patches (P, D) of one picture are artifacts (P)."""
    norms = vectors.float().norm(dim=-1)
    found: Tensor = norms > _TIMES * norms.median()
    return found

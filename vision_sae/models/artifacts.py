"""Artifacts: patches in which a vision transformer stores information about the whole picture.

Large ViTs without registers use a few patches of plain background as such stores. The vectors of
these patches are much longer than others (Darcet et al. 2024, Vision Transformers Need Registers,
arXiv:2309.16588). A map that lights up at an artifact says nothing about that place.
"""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

_TIMES = 4.0
"""The vector of an artifact is at least this many times as long as the median vector of the
picture. (In the source's figure for DINOv2-g ordinary vectors are below 100, artifacts above 150 to
500.)"""


def artifacts(vectors: Float[Tensor, "P D"]) -> Bool[Tensor, " P"]:
    """Which patches of one picture are artifacts."""
    norms = vectors.float().norm(dim=-1)
    is_artifact: Bool[Tensor, " P"] = norms > _TIMES * norms.median()
    return is_artifact

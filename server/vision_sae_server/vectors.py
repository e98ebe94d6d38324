"""What a model has at its sites for pictures."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vision_sae.models.protocol import Model


def vectors_at(
    model: Model, sites: Sequence[str], pixels: Tensor, *, special_tokens: bool = False
) -> dict[str, Tensor]:
    """{site: the vectors of its patches (N, P, D)} for pictures (N, 3, H, W), in one pass; what
    comes after the last site is not computed. With ``special_tokens`` theirs come first."""
    with torch.inference_mode(), model.capture(sites, stop=True) as captured:
        model.forward(pixels)
    left_out = 0 if special_tokens else model.grid.special
    return {site: vectors[:, left_out:].float().cpu() for site, vectors in captured.items()}


def site_vectors(model: Model, site: str, pixels: Tensor) -> Tensor:
    """The vectors of a site's patches (P, D) for one picture (3, H, W), or (N, P, D) for several
    (N, 3, H, W)."""
    vectors = vectors_at(model, [site], pixels[None] if pixels.ndim == 3 else pixels)[site]
    return vectors[0] if pixels.ndim == 3 else vectors

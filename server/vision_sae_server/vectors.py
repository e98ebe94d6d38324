"""What a model has at its sites for pictures."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vision_sae.models.protocol import Model


def vectors_at(model: Model, sites: Sequence[str], pixels: Tensor) -> dict[str, Tensor]:
    """{site: the vectors of its patches (N, P, D)} for pictures (N, 3, H, W), in one pass; what
    comes after the last site is not computed."""
    with torch.inference_mode(), model.capture(sites, stop=True) as captured:
        model.forward(pixels)
    special = model.grid.special
    return {site: vectors[:, special:].float().cpu() for site, vectors in captured.items()}


def site_vectors(model: Model, site: str, pixels: Tensor) -> Tensor:
    """The vectors of a site's patches (P, D) for one picture (3, H, W), or (N, P, D) for several
    (N, 3, H, W)."""
    vectors = vectors_at(model, [site], pixels[None] if pixels.ndim == 3 else pixels)[site]
    return vectors[0] if pixels.ndim == 3 else vectors

"""Site vectors of pictures."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from vision_sae.models.protocol import Model


def vectors_at(
    model: Model,
    sites: Sequence[str],
    pixels: Float[Tensor, "N C H W"],
    *,
    special_tokens: bool = False,
) -> dict[str, Float32[Tensor, "N _ _"]]:
    """{site: vectors of its patches (N, P, D)}, in one pass that stops behind the last site.

    The vectors stay on the model's device. With ``special_tokens`` the vectors of the special
    tokens stand in front of the patches.
    """
    with torch.inference_mode(), model.capture(sites, stop=True) as captured:
        model.forward(pixels)
    left_out = 0 if special_tokens else model.grid.special
    return {site: vectors[:, left_out:].float() for site, vectors in captured.items()}


def site_vectors(
    model: Model, site: str, pixels: Float[Tensor, "*N C H W"]
) -> Float32[Tensor, "*N P D"]:
    """The vectors of a site's patches, for one picture or for several, on the model's device."""
    vectors = vectors_at(model, [site], pixels[None] if pixels.ndim == 3 else pixels)[site]
    return vectors[0] if pixels.ndim == 3 else vectors

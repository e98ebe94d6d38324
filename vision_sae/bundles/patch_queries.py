"""What patches are searched by: the vectors and codes of texts and of parts of pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32
from numpy.typing import NDArray
from torch import Tensor

from vision_sae.bundles.patch_search import (
    PatchHit,
    PatchMask,
    by_code,
    by_text_aligned,
    by_vector,
    text_aligned_index,
)
from vision_sae.bundles.read import Bundle
from vision_sae.dictionaries.protocol import Dictionary
from vision_sae.models.protocol import ContrastiveModel, Model
from vision_sae.vectors import normalised

DEEPEST = 2000
"""The most hits of a search by similarity."""


Space = Literal["vector", "code", "text"]
"""The space of a comparison: site vectors, codes, or the embedding space of texts."""


class Query(NamedTuple):
    """The vector or the code that patches are compared with; one field is set."""

    vector: Float32[np.ndarray, " D"] | None = None
    """A centred site vector."""
    code: Mapping[int, float] | None = None
    """{feature: activation}"""
    aligned: Float32[np.ndarray, " E"] | None = None
    """A vector in the space of texts."""

    @property
    def space(self) -> Space:
        """The space of the field that is set."""
        if self.vector is not None:
            return "vector"
        return "code" if self.aligned is None else "text"


def nearest(
    bundle: Bundle, query: Query, allowed: PatchMask | None = None
) -> tuple[list[PatchHit], float]:
    """(the `DEEPEST` patches that are nearest to a query, best first; the recall at 10 of the
    index that was searched, 1 for an exact search)"""
    if query.vector is not None:
        hits = by_vector(bundle, query.vector, DEEPEST, allowed)
        return hits, float(bundle.manifest["patch_index"]["recall_at_10"])
    if query.aligned is not None:
        hits = by_text_aligned(bundle, query.aligned, DEEPEST, allowed)
        return hits, float(bundle.manifest["text_aligned_index"]["recall_at_10"])
    return by_code(bundle, query.code or {}, DEEPEST, allowed), 1.0


def text_aligned_model(bundle: Bundle, model: Model) -> ContrastiveModel:
    """The model of a bundle whose patches are kept in the space of texts.

    Raises `InvalidInputError` for a bundle without a text-aligned index.
    """
    text_aligned_index(bundle)
    assert isinstance(model, ContrastiveModel)  # only such models have text-aligned indices
    return model


def text_vector(model: ContrastiveModel, text: str) -> Float32[np.ndarray, " E"]:
    """The embedding of a text."""
    return np.asarray(model.embed_texts([text])[0].float().cpu().numpy())


def region_vector(
    model: ContrastiveModel, pixels: Tensor, mask: Bool[np.ndarray, " P"]
) -> Float32[np.ndarray, " E"]:
    """The embedding of the patches in ``mask`` of a preprocessed picture (3, H, W), in the space of
    texts; see `PatchEmbeddings`."""
    chosen = torch.from_numpy(mask)
    with torch.inference_mode():
        pieces = model.embed_patches(pixels[None])
    mean = pieces.weights[0].cpu()[chosen] @ pieces.vectors[0].cpu()[chosen]
    return np.asarray(normalised(mean.numpy()[None])[0])


def mean_direction(
    bundle: Bundle, vectors: Float32[np.ndarray, "N D"]
) -> Float32[np.ndarray, " D"]:
    """The mean of the centred site vectors at unit length, so that all patches count equally."""
    mean: NDArray[np.float32] = normalised(vectors, bundle.site_mean).mean(axis=0)
    return mean


def mean_code(dictionary: Dictionary, vectors: Float32[np.ndarray, "N D"]) -> dict[int, float]:
    """The mean code {feature: activation} of site vectors, in order of the features."""
    codes = dictionary.encode(torch.from_numpy(vectors))
    total = np.bincount(codes.indices.flatten().numpy(), codes.values.flatten().numpy())
    return {int(i): float(total[i]) / len(vectors) for i in np.flatnonzero(total)}

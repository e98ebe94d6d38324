"""How near pictures are to each other and to texts, as a contrastive model sees them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vision_sae.models.protocol import ContrastiveModel

_BATCH = 16


def embed_in_pieces(model: ContrastiveModel, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Images (B, 3, H, W) -> vectors (B, P, E) and weights (B, P) of their patches, as in
    `PatchEmbeddings`, and their own embeddings (B, E)."""
    vectors, weights, whole = model.embed_patches(images)
    return vectors, weights, model.forward(images).embedding if whole is None else whole


def embed_pictures(model: ContrastiveModel, pictures: Sequence[Image.Image]) -> Tensor:
    """Pictures -> (N, E) float32 of unit length; no picture gives (0, E)."""
    parts = [torch.zeros(0, model.embedding_dim)]
    with torch.inference_mode():
        for start in range(0, len(pictures), _BATCH):
            inputs = [model.preprocess(picture) for picture in pictures[start : start + _BATCH]]
            embedding = model.forward(torch.stack(inputs).to(model.device)).embedding
            parts.append(torch.nn.functional.normalize(embedding.float().cpu(), dim=1))
    return torch.cat(parts)


def similarities(
    model: ContrastiveModel, pictures: Sequence[Image.Image], texts: Sequence[str]
) -> NDArray[np.float32]:
    """Cosines (pictures, texts)."""
    cosines = embed_pictures(model, pictures) @ model.embed_texts(texts).float().cpu().T
    return np.asarray(cosines.numpy())

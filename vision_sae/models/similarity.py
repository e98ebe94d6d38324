"""How near pictures are to each other and to texts, as a contrastive model sees them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vision_sae.models.protocol import ContrastiveModel, PatchEmbeddings

_BATCH = 16


def embed_in_pieces(model: ContrastiveModel, images: Tensor) -> PatchEmbeddings:
    """Images (B, 3, H, W) -> their patches and, always, the embeddings of the whole."""
    seen = model.embed_patches(images)
    if seen.whole is None:
        return seen._replace(whole=model.forward(images).embedding)
    return seen


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

"""Similarities of pictures and texts in the space of a contrastive model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float32
from PIL import Image
from torch import Tensor

from vision_sae.models.protocol import ContrastiveModel
from vision_sae.transfers import to_device

_BATCH = 16


def embed_in_pieces(
    model: ContrastiveModel, images: Float[Tensor, "B C H W"]
) -> tuple[Float[Tensor, "B P E"], Float[Tensor, "B P"], Float[Tensor, "B E"]]:
    """(vectors of the patches, weights of the patches, embeddings of the pictures); see
    `PatchEmbeddings`."""
    vectors, weights, whole = model.embed_patches(images)
    return vectors, weights, model.forward(images).embedding if whole is None else whole


def embed_pictures(
    model: ContrastiveModel, pictures: Sequence[Image.Image]
) -> Float32[Tensor, "N E"]:
    """The embeddings of pictures, of unit length."""
    parts = [torch.zeros(0, model.embedding_dim, device=model.device)]
    with torch.inference_mode():
        for start in range(0, len(pictures), _BATCH):
            inputs = [model.preprocess(picture) for picture in pictures[start : start + _BATCH]]
            embedding = model.forward(to_device(torch.stack(inputs), model.device)).embedding
            parts.append(torch.nn.functional.normalize(embedding.float(), dim=1))
    return torch.cat(parts).cpu()


def similarities(
    model: ContrastiveModel, pictures: Sequence[Image.Image], texts: Sequence[str]
) -> Float32[np.ndarray, "N T"]:
    """Cosines of pictures and texts."""
    cosines = embed_pictures(model, pictures) @ model.embed_texts(texts).float().cpu().T
    return np.asarray(cosines.numpy())

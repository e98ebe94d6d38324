"""The protocols that models of every library implement."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float32
from PIL import Image
from torch import Tensor

from vision_sae.models.grid import PatchGrid, Preprocessing
from vision_sae.models.hooks import Edit


@dataclass(frozen=True)
class Site:
    """A named tensor inside a model, for example ``blocks.10.update``."""

    name: str
    kind: str
    dim: int
    """Length D of a site vector."""


class ModelOutput(NamedTuple):
    """What a forward pass returns."""

    embedding: Float[Tensor, "B E"]
    """The pooled image embedding, float32, not normalised."""
    logits: Float[Tensor, "B C"] | None
    """Class logits before any softmax; None for a model without a head."""


@runtime_checkable
class Model(Protocol):
    """A frozen vision network with its preprocessing."""

    name: str
    """The name it was loaded by, for example ``demo:dinov2-s``."""
    kind: str
    """``vit``, ``clip``, ``sdxl``, or the word that another family chooses."""
    preprocessing: Preprocessing
    grid: PatchGrid
    device: torch.device
    dtype: torch.dtype
    """The precision matrix products run in; the residual stream stays float32."""

    @property
    def class_names(self) -> Sequence[str]:
        """Names of the classes, by index; empty for a model without classes or without names."""
        ...

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        ...

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """What the tokens in front of the patches are: ``cls``, ``register_0``, ..."""
        ...

    @property
    def sites(self) -> dict[str, Site]:
        """Every site by name, in the order in which they are computed."""
        ...

    def preprocess(self, image: Image.Image) -> Float32[Tensor, "C H W"]:
        """An RGB picture as model input."""
        ...

    def forward(self, images: Float[Tensor, "B C H W"]) -> ModelOutput:
        """The embeddings and logits of pictures."""
        ...

    def capture(
        self, sites: Sequence[str], *, stop: bool = False
    ) -> AbstractContextManager[dict[str, Tensor]]:
        """Collect sites during forwards in the body; ``stop`` skips all blocks behind the last."""
        ...

    def replace(self, site: str, edit: Edit) -> AbstractContextManager[None]:
        """Pass a site through ``edit`` during forwards in the body."""
        ...

    def embedding_width(self) -> int:
        """Length E of the image embedding."""
        ...

    def identity(self) -> dict[str, Any]:
        """What a manifest records to recognise this model: name, kind, weights hash, preprocessing,
        grid."""
        ...


class PatchEmbeddings(NamedTuple):
    """The patches of pictures in the space that texts share.

    The embedding of a region is the normalised sum of ``weights * vectors`` over its patches.
    """

    vectors: Float32[Tensor, "B P E"]
    """Row-major patches, not normalised."""
    weights: Float32[Tensor, "B P"]
    """Not negative; they sum to one for each picture."""
    whole: Float32[Tensor, "B E"] | None = None
    """The embedding of the picture, where the same pass computes it; else None."""


@runtime_checkable
class ContrastiveModel(Model, Protocol):
    """A model whose image embeddings share a space with those of texts (CLIP and its kin)."""

    embedding_dim: int
    """Length E of an embedding."""
    logit_scale: float
    """What cosines are multiplied by before a softmax; the exponential of the parameter."""

    def embed_texts(self, texts: Sequence[str]) -> Float32[Tensor, "T E"]:
        """The embeddings of texts, of unit length."""
        ...

    def unread_text(self, text: str) -> str:
        """The end of a text that is too long for the encoder; "" where all is read."""
        ...

    def embed_patches(self, images: Float[Tensor, "B C H W"]) -> PatchEmbeddings:
        """One vector and one weight for each patch of the grid."""
        ...

"""What every model can do, whatever library it comes from."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
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

    embedding: Tensor
    """The pooled image embedding (B, E), float32, not normalised."""
    logits: Tensor | None
    """Class logits (B, C) before any softmax; None for a model without a head."""


@runtime_checkable
class Model(Protocol):
    """A frozen vision network with its preprocessing."""

    name: str
    """The name it was loaded by, for example ``demo:dinov2-s``."""
    kind: str
    """``vit``, ``clip`` or ``sdxl``."""
    preprocessing: Preprocessing
    grid: PatchGrid
    device: torch.device
    dtype: torch.dtype
    """The precision matrix products run in; the residual stream stays float32."""

    @property
    def class_names(self) -> Sequence[str]:
        """What its classes are called, by index; empty where it has none, or nobody says."""
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

    def preprocess(self, image: Image.Image) -> Tensor:
        """RGB picture -> model input (3, H, W), float32."""
        ...

    def forward(self, images: Tensor) -> ModelOutput:
        """Images (B, 3, H, W) -> `ModelOutput`."""
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
        """What a manifest binds: name, kind, weights hash, preprocessing, grid."""
        ...


class PatchEmbeddings(NamedTuple):
    """An image in pieces: its patches in the space its texts are in.

    The embedding of a region is the normalised sum of ``weights * vectors`` over its patches.
    """

    vectors: Tensor
    """(B, P, E) float32, row-major patches, not normalised."""
    weights: Tensor
    """(B, P) float32, not negative, summing to one for each image."""
    whole: Tensor | None = None
    """The embedding of the image (B, E), where it comes out on the way; else None."""


@runtime_checkable
class ContrastiveModel(Model, Protocol):
    """A model whose image embeddings share a space with those of texts (CLIP and its kin)."""

    embedding_dim: int
    """Length E of an embedding."""
    logit_scale: float
    """What cosines are multiplied by before a softmax; the exponential of the parameter."""

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts -> (T, E) float32 of unit length; no text gives (0, E)."""
        ...

    def unread_text(self, text: str) -> str:
        """The end of a text that is too long, which its embedding knows nothing of; "" else."""
        ...

    def embed_patches(self, images: Tensor) -> PatchEmbeddings:
        """Images (B, 3, H, W) -> one vector and one weight for each patch of the grid."""
        ...

"""Contrastive models of open_clip behind the `ContrastiveModel` protocol.

Vision towers may be open_clip's own ``VisionTransformer`` or a timm ViT; their sites have the names
that `vision_sae.models.vit` gives them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from vision_sae.devices import Dtype
from vision_sae.errors import InvalidInputError
from vision_sae.models.context import unread_by_open_clip
from vision_sae.models.grid import PatchGrid, Preprocessing
from vision_sae.models.hooks import Tap, capturing
from vision_sae.models.protocol import ModelOutput, PatchEmbeddings
from vision_sae.models.vit import TimmBackbone, VitModel

Tokenizer = Callable[[list[str]], Tensor]
TEXT_BATCH = 256


class VisionTower(Protocol):
    """What differs between the vision towers of open_clip."""

    grid: PatchGrid
    dim: int
    special_tokens: tuple[str, ...]

    def blocks(self) -> list[tuple[nn.Module, nn.Module, nn.Linear]]:
        """(block, its attention, the last linear of its MLP) in order of computation."""
        ...

    def embed_patches(self, images: Float[Tensor, "B C H W"]) -> PatchEmbeddings:
        """The patches of pictures in the space that texts share."""
        ...


def _uniform(vectors: Tensor) -> PatchEmbeddings:
    count = vectors.shape[1]
    return PatchEmbeddings(vectors.float(), vectors.new_full(vectors.shape[:2], 1 / count).float())


def _each_alone(module: nn.Module, tokens: Tensor) -> Tensor:
    """Run a module of attention on each token (B, T, D) as a sequence of one token.

    Attention over a single token is its value path, whatever its queries and keys are, so this is
    how MaskCLIP (Zhou et al. 2022, arXiv:2112.01071) keeps patches apart in a last block whose
    attention serves the class token.
    """
    alone: Tensor = module(tokens.flatten(0, 1)[:, None])
    return alone.reshape(*tokens.shape[:2], -1)


class OpenClipTower:
    """open_clip's ``VisionTransformer`` whose image embedding is its class token or its mean."""

    def __init__(self, visual: nn.Module) -> None:
        vit = cast(Any, visual)
        if vit.attn_pool is not None or vit.pool_type not in ("tok", "avg"):
            raise InvalidInputError(
                "vision towers that pool by several queries (as CoCa's) are not supported: their "
                "embedding has no patches; choose a CLIP or SigLIP model",
                field="model",
            )
        if not vit.transformer.batch_first:
            raise InvalidInputError(
                "this vision tower puts tokens before images; update open_clip_torch to 3.2 or "
                "newer, whose towers put images first",
                field="model",
            )
        self._visual = vit
        rows, cols = vit.grid_size
        self.special_tokens: tuple[str, ...] = ("cls",)
        self.grid = PatchGrid(rows, cols, 1, *vit.patch_size)
        self.dim = int(vit.transformer.width)

    def blocks(self) -> list[tuple[nn.Module, nn.Module, nn.Linear]]:
        """See `VisionTower.blocks`."""
        return [(b, b.attn, b.mlp.c_proj) for b in self._visual.transformer.resblocks]

    def embed_patches(self, images: Float[Tensor, "B C H W"]) -> PatchEmbeddings:
        """The tokens behind the last block, or for a class-token tower behind its value path
        (see `_each_alone`), each projected as if it were the image."""
        visual, last = self._visual, self._visual.transformer.resblocks[-1]
        if visual.pool_type == "tok":
            with capturing({"tokens": Tap(last, "input")}, stop=True) as captured:
                visual(images)
            tokens = _each_alone(last, captured["tokens"][:, 1:])
        else:
            with capturing({"tokens": Tap(last, "output")}, stop=True) as captured:
                visual(images)
            tokens = captured["tokens"][:, 1:]
        projected = visual.ln_post(tokens)
        return _uniform(projected if visual.proj is None else projected @ visual.proj)


class TimmTower:
    """A timm ViT as open_clip's vision tower."""

    def __init__(self, visual: nn.Module) -> None:
        self._visual = cast(Any, visual)
        self._trunk = self._visual.trunk
        self._backbone = TimmBackbone(self._trunk, self._visual.image_size)
        self.grid, self.dim = self._backbone.grid, self._backbone.dim
        self.special_tokens = self._backbone.special_tokens

    def blocks(self) -> list[tuple[nn.Module, nn.Module, nn.Linear]]:
        """See `VisionTower.blocks`."""
        return self._backbone.blocks()

    def embed_patches(self, images: Float[Tensor, "B C H W"]) -> PatchEmbeddings:
        """Embeddings of patches, by the pooling of the trunk.

        - `PooledVit`: exactly what each patch adds.
        - Mean: the patches behind the last norm, each through the head.
        - Class token: MaskCLIP's way (see `_each_alone`).
        - Attention with a learned query ("map", as SigLIP, Zhai et al. 2023, arXiv:2303.15343):
          each patch alone through the pooling, as MaskCLIP treats the pooling attention of CLIP's
          ResNets. The weight of a patch is its mean share of the attention.
        """
        from vision_sae.models.pooled_vit import PooledVit

        trunk = self._trunk
        if isinstance(trunk, PooledVit):
            return PatchEmbeddings(*trunk.patch_pooling.apart(trunk.forward_features(images)))
        special = self.grid.special
        if trunk.global_pool == "map":
            features = trunk.forward_features(images)
            pool = trunk.attn_pool
            tokens = features if trunk.pool_include_prefix else features[:, special:]
            weights = _attention_of_pooling(pool, tokens)[:, -self.grid.patches :]
            vectors = self._head(_each_alone(pool, features[:, special:]))
            return PatchEmbeddings(vectors.float(), weights / weights.sum(dim=1, keepdim=True))
        if trunk.global_pool == "token":
            last = trunk.blocks[-1]
            with capturing({"tokens": Tap(last, "input")}, stop=True) as captured:
                trunk(images)
            patches = _each_alone(last, captured["tokens"][:, special:])
            return _uniform(self._head(trunk.norm(patches)))
        if trunk.global_pool == "avg":
            return _uniform(self._head(trunk.forward_features(images)[:, special:]))
        raise InvalidInputError(
            f"patch embeddings of a timm tower that pools by {trunk.global_pool!r} are not "
            "supported; those with token, avg or map pooling are",
            field="model",
        )

    def _head(self, tokens: Tensor) -> Tensor:
        """The layers behind the pooling, on each token (B, P, D) -> (B, P, E)."""
        trunk = self._trunk
        result: Tensor = self._visual.head(trunk.head(trunk.fc_norm(tokens)))
        return result


def _attention_of_pooling(pool: Any, tokens: Tensor) -> Tensor:
    """Mean attention (B, T) over heads of timm's ``AttentionPoolLatent``."""
    count, heads = tokens.shape[0], pool.num_heads
    if pool.pos_embed is not None:
        tokens = tokens + pool.pos_embed
    query = pool.q(pool.latent.expand(count, -1, -1)).unflatten(-1, (heads, -1)).transpose(1, 2)
    key = pool.kv(tokens).unflatten(-1, (2, heads, -1))[:, :, 0].transpose(1, 2)
    logits = (pool.q_norm(query) @ pool.k_norm(key).transpose(-2, -1)).float() * pool.scale
    shares: Tensor = logits.softmax(dim=-1)
    return shares.mean(dim=(1, 2))


class OpenClipBackbone:
    """An open_clip model as the backbone of a `VitModel`; its weights are those of both towers."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.tower = _tower(module)
        self.grid, self.dim = self.tower.grid, self.tower.dim
        self.special_tokens = self.tower.special_tokens

    def blocks(self) -> list[tuple[nn.Module, nn.Module, nn.Linear]]:
        """See `VisionTower.blocks`."""
        return self.tower.blocks()

    def forward(self, images: Float[Tensor, "B C H W"]) -> ModelOutput:
        """The embeddings of pictures in the space that texts share; no logits."""
        return ModelOutput(cast(Any, self.module).encode_image(images).float(), None)

    def classify(self, tokens: Float[Tensor, "B n D"]) -> Float[Tensor, "B C"] | None:
        """None: a contrastive model has no classifier."""
        return None


def _tower(module: nn.Module) -> VisionTower:
    visual: Any = getattr(module, "visual", None)
    if hasattr(visual, "trunk"):
        return TimmTower(visual)
    if hasattr(getattr(visual, "transformer", None), "resblocks"):
        return OpenClipTower(visual)
    raise InvalidInputError(
        f"the vision tower is a {type(visual).__name__}, which has no transformer blocks; choose a "
        "model with a ViT, such as ViT-B-32",
        field="model",
    )


class ClipModel(VitModel):
    """A contrastive model: see `vision_sae.models.protocol.ContrastiveModel`.

    The vision tower is a `VitModel` like any other. Texts run in float32, so that an embedding does
    not depend on the texts beside it beyond the rounding of sums.
    """

    kind = "clip"

    def __init__(
        self,
        name: str,
        module: nn.Module,
        tokenizer: Tokenizer,
        preprocessing: Preprocessing,
        *,
        dtype: Dtype = "auto",
        device: str = "cpu",
    ) -> None:
        backbone = OpenClipBackbone(module)
        super().__init__(name, backbone, preprocessing, dtype=dtype, device=device)
        self._tower, self._tokenizer = backbone.tower, tokenizer
        self._tokenizing = threading.Lock()
        """A tokenizer keeps its padding as state, so one call at a time."""
        self._module = cast(Any, module)
        self.logit_scale = float(self._module.logit_scale.exp())
        self.embedding_dim = self._encode([""]).shape[1]

    def embedding_width(self) -> int:
        """Length E of the embeddings of images and texts."""
        return self.embedding_dim

    def embed_texts(self, texts: Sequence[str]) -> Float32[Tensor, "T E"]:
        """The embeddings of texts, of unit length, on the model's device."""
        embedded = torch.zeros(len(texts), self.embedding_dim, device=self.device)
        # Texts of one length side by side leave the least padding to compute.
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        for start in range(0, len(order), TEXT_BATCH):
            rows = order[start : start + TEXT_BATCH]
            embedded[rows] = self._encode([texts[row] for row in rows])
        return embedded

    def unread_text(self, text: str) -> str:
        """See `ContrastiveModel.unread_text`."""
        with self._tokenizing:
            return unread_by_open_clip(self._tokenizer, text)

    def _encode(self, texts: list[str]) -> Tensor:
        with self._tokenizing:
            tokens = self._tokenizer(texts).to(self.device)
        with torch.inference_mode():
            encoded = self._module.encode_text(self._without_padding(tokens))
        return nn.functional.normalize(encoded.float(), dim=-1)

    def _without_padding(self, tokens: Tensor) -> Tensor:
        """Drop columns that are padding in all rows where the text tower masks padding out:
        transformers' towers do; open_clip's own have a fixed length."""
        config = getattr(getattr(self._module, "text", None), "config", None)
        padding = getattr(config, "pad_token_id", None)
        if padding is None:
            return tokens
        return tokens[:, : int((tokens != padding).sum(dim=1).max())]

    def embed_patches(self, images: Float[Tensor, "B C H W"]) -> PatchEmbeddings:
        """One vector and one weight for each patch; see `VisionTower`."""
        with self.autocast():
            return self._tower.embed_patches(images.to(self.device))

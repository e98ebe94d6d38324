"""A vision transformer whose image embedding is a weighted sum of its patches plus one vector.

open_clip's configs can name any timm model as their vision tower but none that pools this way, so
this one is registered with timm under the name `NAME`, which also fixes the image size
that open_clip does not pass on. With such a tower the embedding of a region is a part of the
embedding of the image rather than an approximation.
"""

from __future__ import annotations

from typing import Any

import timm
import torch
from jaxtyping import Float
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

NAME = "vision_sae_vit_small_patch14_pooled_224"
SHALLOW = 8
"""The block whose output is read beside the last block's, since it keeps more of places."""


class PatchPooling(nn.Module):
    """Attention over patches whose query is the class token and whose values stay separate.

    A patch's value passes through layers of its own before the attention and through one linear
    map behind it: a weighted sum of one vector a patch, to which is added what the class token says
    of the whole. In training the whole is left out for half of the pictures: the patches learn to
    do without it, as the patches of a region must.
    """

    def __init__(self, width: int, embed_dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = nn.Dropout(0.2)
        self.query = nn.Linear(width, embed_dim)
        self.key = nn.Linear(width, embed_dim)
        self.value = nn.Linear(width, embed_dim)
        self.hidden = nn.Linear(width, hidden)
        self.refined = nn.Linear(hidden, embed_dim)
        self.whole = nn.Linear(width, embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)
        nn.init.zeros_(self.whole.weight)
        nn.init.zeros_(self.whole.bias)

    def _attention(self, tokens: Tensor) -> Tensor:
        """Tokens (B, 1 + P, width), class token first -> shares (B, H, P) that sum to one."""
        count, width = tokens.shape[0], self.query.out_features // self.heads
        query = self.query(tokens[:, :1]).reshape(count, 1, self.heads, width)
        key = self.key(tokens[:, 1:]).reshape(count, -1, self.heads, width)
        logits = (query * key).sum(-1).float() * width**-0.5
        shares: Tensor = logits.softmax(dim=1).transpose(1, 2)
        return shares

    def _values(self, tokens: Tensor) -> Tensor:
        """(B, H, P, E / H)"""
        patches = self.dropout(tokens[:, 1:])
        values = self.value(patches) + self.refined(nn.functional.gelu(self.hidden(patches)))
        by_head: Tensor = values.unflatten(-1, (self.heads, -1)).transpose(1, 2).float()
        return by_head

    def forward(self, tokens: Float[Tensor, "B tokens width"]) -> Float[Tensor, "B E"]:
        """The embeddings of tokens, class token first."""
        pooled = torch.einsum("bhp,bhpd->bhd", self._attention(tokens), self._values(tokens))
        embedding: Tensor = self.proj(pooled.flatten(1) + self._whole(tokens))
        return embedding

    def _whole(self, tokens: Tensor) -> Tensor:
        """What the class token adds (B, E), whatever the patches' weights are."""
        added: Tensor = self.whole(self.dropout(tokens[:, 0])).float()
        if self.training:
            added = added * (torch.rand(len(added), 1, device=added.device) < 0.5)
        return added

    def apart(
        self, tokens: Float[Tensor, "B tokens width"]
    ) -> tuple[Float[Tensor, "B P E"], Float[Tensor, "B P"], Float[Tensor, "B E"]]:
        """(vectors of the patches, their weights, the embeddings).

        The weight of a patch is its mean share over heads; its vector is what the patch adds,
        divided by that weight. Their weighted sum is the embedding without what the class token
        adds to it.
        """
        attention = self._attention(tokens)
        weights = attention.mean(dim=1)
        share = attention / weights[:, None].clamp_min(1e-12)
        parts = (share[..., None] * self._values(tokens)).transpose(1, 2).flatten(2)
        vectors = self.proj(parts).float()
        local = (weights[..., None] * vectors).sum(1)
        added = nn.functional.linear(self._whole(tokens), self.proj.weight)
        return vectors, weights, local + added.float()


class PooledVit(VisionTransformer):
    """timm's `VisionTransformer` with `PatchPooling` over the tokens of two depths as its head."""

    def __init__(
        self,
        *,
        pooled_dim: int = 384,
        pooled_heads: int = 6,
        pooled_hidden: int = 512,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if self.num_prefix_tokens != 1:
            raise ValueError("the pooling asks with one class token; use class_token=True")
        self.shallow = min(SHALLOW, len(self.blocks) - 2)
        self.shallow_norm = nn.LayerNorm(self.embed_dim, eps=1e-6)
        self.patch_pooling = PatchPooling(
            2 * self.embed_dim, pooled_dim, pooled_heads, pooled_hidden
        )

    def forward_features(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Images (B, 3, H, W) -> tokens of both depths, normalised (B, 1 + P, 2 D)."""
        x = self.norm_pre(self.patch_drop(self._pos_embed(self.patch_embed(x))))
        for block in self.blocks[: self.shallow + 1]:
            x = block(x)
        return self.from_shallow(x)

    def from_shallow(self, x: Tensor) -> Tensor:
        """The residual stream behind block ``shallow`` -> tokens of both depths."""
        shallow = self.shallow_norm(x)
        for block in self.blocks[self.shallow + 1 :]:
            x = block(x)
        # A site behind `shallow` may have made several variants of one image.
        return torch.cat([shallow.expand(len(x), -1, -1), self.norm(x)], dim=-1)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens of both depths -> image embedding (B, E)."""
        embedding: Tensor = self.patch_pooling(x)
        return embedding


default_cfgs = generate_default_cfgs({NAME: {"input_size": (3, 224, 224), "num_classes": 0}})
"""What timm looks up by name when it builds a registered model."""


@register_model
def vision_sae_vit_small_patch14_pooled_224(pretrained: bool = False, **options: Any) -> nn.Module:
    """ViT-S/14 of DINOv2's shape at 224 pixels with `PatchPooling`; brings no weights."""
    shape = {"img_size": 224, "patch_size": 14, "embed_dim": 384, "depth": 12, "num_heads": 6}
    model: nn.Module = build_model_with_cfg(
        PooledVit, NAME, pretrained, **shape | {"init_values": 1e-5} | options
    )
    return model


assert timm.is_model(NAME), "register_model goes by the function's name"

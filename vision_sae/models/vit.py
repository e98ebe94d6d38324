"""Vision transformers of timm and torchvision behind the `Model` protocol."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any, Protocol, cast

import torch
from jaxtyping import Float, Float32
from PIL import Image
from timm.models.vision_transformer import global_pool_nlc
from torch import Tensor, nn

from vision_sae.devices import Dtype
from vision_sae.errors import InvalidInputError, NotFoundError
from vision_sae.models.grid import PatchGrid, Preprocessing
from vision_sae.models.hooks import Edit, Tap, capturing, replacing_site
from vision_sae.models.precision import computing_dtype
from vision_sae.models.protocol import ModelOutput, Site


class VitBackbone(Protocol):
    """What differs between the libraries of vision transformers."""

    module: nn.Module
    grid: PatchGrid
    dim: int
    special_tokens: tuple[str, ...]
    """The names of the tokens in front of the patches, in their order."""

    def blocks(self) -> list[tuple[nn.Module, nn.Module, nn.Linear]]:
        """(block, its attention, the last linear of its MLP) in order of computation."""
        ...

    def forward(self, images: Float[Tensor, "B C H W"]) -> ModelOutput:
        """The embeddings and logits of pictures."""
        ...

    def classify(self, tokens: Float[Tensor, "B n D"]) -> Float[Tensor, "B C"] | None:
        """The logits of some tokens behind the last block, pooled as the model pools; None without
        a classifier. Where the model pools by class token, the tokens are averaged."""
        ...


class TimmBackbone:
    """Any timm model with ``blocks``, with or without class token and registers, square or not.

    ``size`` is the height and width of its input, where the model was built for another size.
    """

    def __init__(self, module: nn.Module, size: tuple[int, int] | None = None) -> None:
        blocks = getattr(module, "blocks", None)
        patch_embed: Any = getattr(module, "patch_embed", None)
        sequential = blocks is not None and all(
            hasattr(block, "attn") and hasattr(getattr(block, "mlp", None), "fc2")
            for block in blocks
        )
        if not sequential or not hasattr(patch_embed, "grid_size"):
            raise InvalidInputError(
                f"{type(module).__name__} is not a plain vision transformer (it lacks "
                "`patch_embed.grid_size`, or `blocks` of `attn` and `mlp.fc2`); choose a timm "
                "vit, deit, eva or beit",
                field="model",
            )
        self.module = module.eval()  # training drops patches
        dynamic = size is not None and getattr(module, "dynamic_img_size", False)
        rows, cols = patch_embed.dynamic_feat_size(size) if dynamic else patch_embed.grid_size
        # In a hybrid, patches are of a ResNet's maps: each covers many more pixels of the picture.
        patch_h, patch_w = patch_embed.feat_ratio(as_scalar=False)
        self.special_tokens = _prefix_of(module)
        self.grid = PatchGrid(rows, cols, len(self.special_tokens), patch_h, patch_w)
        self.dim = int(cast(int, module.embed_dim))
        self._check_tokens()

    def _check_tokens(self) -> None:
        """Refuse a model whose first block does not get all tokens of the grid as one sequence: a
        model whose class token joins later, such as CaiT, or that keeps maps, such as SAM."""
        grid, module = self.grid, self.module
        size = (grid.rows * grid.patch_height, grid.cols * grid.patch_width)
        # On the device `meta` only shapes are computed.
        images = torch.empty(1, 3, *size, device="meta")
        named = (*module.named_parameters(), *module.named_buffers())
        weights = {name: tensor.to("meta") for name, tensor in named}
        first = {"tokens": Tap(self.blocks()[0][0], "input")}
        with torch.inference_mode(), capturing(first, stop=True) as captured:
            torch.func.functional_call(module, weights, (images,))
        expected, shape = (1, grid.special + grid.patches, self.dim), captured["tokens"].shape
        if tuple(shape) != expected:
            raise InvalidInputError(
                f"{type(module).__name__} is not a plain vision transformer: its first block is "
                f"given {tuple(shape)} where its patches and special tokens are {expected}; choose "
                "a timm vit, deit, eva or beit",
                field="model",
            )

    def blocks(self) -> list[tuple[nn.Module, nn.Module, nn.Linear]]:
        """See `VitBackbone.blocks`."""
        blocks = cast(Sequence[Any], self.module.blocks)
        return [(b, b.attn, b.mlp.fc2) for b in blocks]

    def forward(self, images: Float[Tensor, "B C H W"]) -> ModelOutput:
        """See `VitBackbone.forward`."""
        module = cast(Any, self.module)
        features = module.forward_features(images)
        embedding = module.forward_head(features, pre_logits=True)
        logits = module.forward_head(features).float() if self._heads() else None
        return ModelOutput(embedding.float(), logits)

    def _heads(self) -> list[nn.Module]:
        """The classifier; a distilled DeiT has two, and its logits are the mean of both."""
        classifier = cast(Any, self.module).get_classifier()
        heads = classifier if isinstance(classifier, tuple) else (classifier,)
        return [h for h in heads if isinstance(h, nn.Module) and not isinstance(h, nn.Identity)]

    def classify(self, tokens: Float[Tensor, "B n D"]) -> Float[Tensor, "B C"] | None:
        """See `VitBackbone.classify`."""
        module, heads = cast(Any, self.module), self._heads()
        if not heads:
            return None
        tokens = module.norm(tokens)
        pool, how = getattr(module, "attn_pool", None), module.global_pool
        if pool is None:
            how = "avg" if how == "token" else how
            pooled = global_pool_nlc(tokens, pool_type=how, num_prefix_tokens=0)
        else:
            pooled = pool(tokens)
        pooled = module.fc_norm(pooled)
        return torch.stack([head(pooled).float() for head in heads]).mean(0)


def _prefix_of(module: nn.Module) -> tuple[str, ...]:
    """The tokens that a timm ViT puts in front of its patches."""
    count = int(getattr(module, "num_prefix_tokens", 1))
    tokens = {"cls": "cls_token", "distillation": "dist_token"}
    named = [name for name, token in tokens.items() if getattr(module, token, None) is not None]
    return (*named, *(f"register_{i}" for i in range(count - len(named))))[:count]


class TorchvisionBackbone:
    """torchvision's ``VisionTransformer`` (``vit_b_16`` and friends)."""

    def __init__(self, module: nn.Module) -> None:
        vit = cast(Any, module)
        self.module = module
        side = vit.image_size // vit.patch_size
        self.special_tokens: tuple[str, ...] = ("cls",)
        self.grid = PatchGrid(side, side, 1, vit.patch_size, vit.patch_size)
        self.dim = int(vit.hidden_dim)

    def blocks(self) -> list[tuple[nn.Module, nn.Module, nn.Linear]]:
        """See `VitBackbone.blocks`."""
        layers = cast(Any, self.module).encoder.layers
        return [(b, b.self_attention, b.mlp[3]) for b in layers]

    def forward(self, images: Float[Tensor, "B C H W"]) -> ModelOutput:
        """See `VitBackbone.forward`."""
        vit = cast(Any, self.module)
        tokens = vit._process_input(images)
        cls = vit.class_token.expand(tokens.shape[0], -1, -1)
        embedding = vit.encoder(torch.cat([cls, tokens], dim=1))[:, 0]
        return ModelOutput(embedding.float(), vit.heads(embedding).float())

    def classify(self, tokens: Float[Tensor, "B n D"]) -> Float[Tensor, "B C"] | None:
        """See `VitBackbone.classify`."""
        vit = cast(Any, self.module)
        logits: Tensor = vit.heads(vit.encoder.ln(tokens).mean(1)).float()
        return logits


def _float32_input(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (args[0].float(), *args[1:])


class VitModel:
    """A ViT behind the `Model` protocol: see `vision_sae.models.protocol.Model`.

    Matrix products run in ``dtype`` under autocast; the residual stream stays float32, so that a
    block update is never the difference of two rounded numbers. A hook converts the input of the
    first block to float32: in a model without class token, position table and LayerScale, no other
    operation would.
    """

    kind = "vit"

    def __init__(
        self,
        name: str,
        backbone: VitBackbone,
        preprocessing: Preprocessing,
        *,
        dtype: Dtype = "auto",
        device: str = "cpu",
        class_names: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.class_names = tuple(class_names)
        self.backbone = backbone
        self.preprocessing = preprocessing
        self.grid = backbone.grid
        self.device = torch.device(device)
        self.dtype = computing_dtype(dtype, device)
        backbone.module.eval().requires_grad_(False).to(self.device)
        backbone.blocks()[0][0].register_forward_pre_hook(_float32_input)

    @cached_property
    def _taps(self) -> dict[str, tuple[Site, Tap]]:
        taps: dict[str, tuple[Site, Tap]] = {}
        for index, (block, attention, mlp_out) in enumerate(self.backbone.blocks()):
            # The order in which a block computes its sites.
            for kind, dim, tap in (
                ("attn", self.backbone.dim, Tap(attention, "output")),
                ("mlp", mlp_out.in_features, Tap(mlp_out, "input")),
                ("resid", self.backbone.dim, Tap(block, "output")),
                ("update", self.backbone.dim, Tap(block, "update")),
            ):
                name = f"blocks.{index}.{kind}"
                taps[name] = (Site(name, kind, dim), tap)
        return taps

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """See `Model.special_tokens`."""
        return self.backbone.special_tokens

    @cached_property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(parameter.numel() for parameter in self.backbone.module.parameters())

    @property
    def sites(self) -> dict[str, Site]:
        """Every site by name."""
        return {name: site for name, (site, _) in self._taps.items()}

    def _tap(self, site: str) -> Tap:
        if site not in self._taps:
            last = len(self._taps) // 4 - 1
            raise NotFoundError(
                f"model {self.name} has no site {site!r}; sites are blocks.0 to blocks.{last}, "
                "each with .update, .resid, .mlp and .attn",
                field="site",
            )
        return self._taps[site][1]

    def preprocess(self, image: Image.Image) -> Float32[Tensor, "C H W"]:
        """An RGB picture as model input."""
        return self.preprocessing(image)

    def autocast(self) -> torch.autocast:
        """The context in which matrix products run in ``dtype``."""
        half = self.dtype != torch.float32
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=half)

    def forward(self, images: Float[Tensor, "B C H W"]) -> ModelOutput:
        """The embeddings and logits of pictures."""
        with self.autocast():
            return self.backbone.forward(images.to(self.device))

    @cached_property
    def _embedding_width(self) -> int:
        blank = torch.zeros(1, 3, self.preprocessing.height, self.preprocessing.width)
        with torch.inference_mode():
            return self.forward(blank).embedding.shape[1]

    def embedding_width(self) -> int:
        """Length E of the image embedding; the first time it takes a forward pass."""
        return self._embedding_width

    def classify(self, tokens: Float[Tensor, "B n D"]) -> Float[Tensor, "B C"] | None:
        """See `VitBackbone.classify`."""
        with self.autocast():
            return self.backbone.classify(tokens)

    def capture(
        self, sites: Sequence[str], *, stop: bool = False
    ) -> AbstractContextManager[dict[str, Tensor]]:
        """Collect sites during forwards in the body; ``stop`` skips all blocks behind the last."""
        return capturing({site: self._tap(site) for site in sites}, stop=stop)

    def replace(self, site: str, edit: Edit) -> AbstractContextManager[None]:
        """Pass a site through ``edit`` during forwards in the body."""
        return replacing_site(self._tap(site), edit)

    @cached_property
    def weights_sha256(self) -> str:
        """SHA-256 over names, shapes and float32 bytes of all parameters and buffers."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.backbone.module.state_dict().items()):
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def identity(self) -> dict[str, Any]:
        """What a manifest records to recognise this model; the weights hash must match, the name
        need not."""
        return {
            "name": self.name,
            "kind": self.kind,
            "weights_sha256": self.weights_sha256,
            "preprocessing": self.preprocessing.to_json(),
            "grid": self.grid.to_json(),
        }

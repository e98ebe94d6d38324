"""Contrastive models as open_clip builds them, from its list, a hub or a folder."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import open_clip
import torch
from open_clip.model import _build_vision_tower
from open_clip.transform import PreprocessCfg, image_transform_v2
from torch import Tensor, nn

from vision_sae.devices import Dtype
from vision_sae.errors import InvalidInputError, NotFoundError
from vision_sae.models.clip import ClipModel, OpenClipBackbone, Tokenizer
from vision_sae.models.grid import Preprocessing
from vision_sae.models.parity import check_architecture, check_parity, check_texts
from vision_sae.models.sources import check_weights, read_config, translated_errors
from vision_sae.models.vit import VitModel


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


def load_listed(target: str, name: str, *, dtype: Dtype, device: str) -> ClipModel:
    """A built-in open_clip model; ``target`` is NAME or NAME/TAG, where TAG names pretrained
    weights (or a file of them)."""
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
    return load_open_clip(
        model, name, pretrained=tag, quick_gelu=quick_gelu, dtype=dtype, device=device
    )


def load_folder(target: str, name: str, *, dtype: Dtype, device: str) -> ClipModel:
    """A model from a directory as open_clip's ``local-dir:`` reads it."""
    config = Path(target) / "open_clip_config.json"
    read_config(config)
    check_weights(config.parent)
    return load_open_clip(f"local-dir:{target}", name, config=config, dtype=dtype, device=device)


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
    config = open_clip.get_model_config(model)
    with torch.device("meta"):
        gelu = config.get("quick_gelu", False)
        visual = _build_vision_tower(config["embed_dim"], config["vision_cfg"], gelu)
    backbone = OpenClipBackbone(_VisionAlone(visual))
    size = Preprocessing(*visual.image_size)
    return VitModel(name, backbone, size, dtype="float32", device="meta")


def load_open_clip(
    model: str,
    name: str,
    *,
    pretrained: str | None = None,
    quick_gelu: bool = False,
    config: Path | None = None,
    dtype: Dtype,
    device: str,
) -> ClipModel:
    """The model that open_clip calls ``model``, first without weights: its architecture may be
    unfit. ``config`` is the file of its configuration, where that is on this machine."""
    with translated_errors(name, config=config), quiet():
        planned = _planned(model, name)
    check_architecture(planned)
    with translated_errors(name, config=config), quiet():
        module = open_clip.create_model(
            model,
            pretrained=pretrained,
            force_quick_gelu=quick_gelu,
            require_pretrained=True,
        )
        tokenizer = open_clip.get_tokenizer(model)
    return checked(module, tokenizer, name, dtype=dtype, device=device)


def checked(
    module: nn.Module, tokenizer: Tokenizer, name: str, *, dtype: Dtype, device: str
) -> ClipModel:
    """A module of open_clip behind the protocol, once it agrees with the library."""
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
def quiet() -> Iterator[None]:
    """Without what open_clip reports to the root logger while it builds a model."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        root.setLevel(before)

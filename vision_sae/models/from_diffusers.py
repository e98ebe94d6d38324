"""Text-to-image pipelines as diffusers loads them, from its hub or from a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
from torch import nn

from vision_sae.devices import Dtype
from vision_sae.errors import CorruptArtifactError, InvalidInputError, NotFoundError
from vision_sae.models.pipeline_parity import check_pipeline
from vision_sae.models.sdxl import SdxlModel, quiet_diffusers
from vision_sae.models.sources import check_weights, numbers_in, read_config, translated_errors

_OPTIONS: dict[str, dict[str, Any]] = {
    "StableDiffusionXLPipeline": {"add_watermarker": False},
    "StableDiffusionPipeline": {"safety_checker": None, "requires_safety_checker": False},
}
"""The options that pipelines of each class are loaded with: no safety checker, no watermark."""
_NOT_NEEDED = ("safety_checker", "feature_extractor", "image_encoder")
"""Parts that may be missing in a folder, since nothing here runs them."""


def load_pipeline(
    target: str, name: str, *, dtype: Dtype = "auto", device: str = "cpu"
) -> SdxlModel:
    """A pipeline of the hub, or the directory that ``save_pretrained`` wrote."""
    folder = Path(target)
    index = folder / "model_index.json" if folder.is_dir() else None
    if index is not None:
        _check_parts(index)
    pipelines: Any = diffusers
    with translated_errors(name, config=index), quiet_diffusers():
        kind = pipelines.DiffusionPipeline.load_config(target)["_class_name"]
        if kind not in _OPTIONS:
            raise InvalidInputError(
                f"{target} is a {kind}; supported are {' and '.join(_OPTIONS)}", field="model"
            )
        options = _OPTIONS[kind] | {"use_safetensors": True}
        pipeline = getattr(pipelines, kind).from_pretrained(target, **options)
        if index is not None:
            _check_whole(folder, pipeline)
        model = SdxlModel(name, pipeline, dtype=dtype, device=device)
    check_pipeline(model)
    return model


def _check_parts(index: Path) -> None:
    """Raise unless the folder of a pipeline's ``index`` has every part, with whole weights."""
    for name, kind in read_config(index).items():
        part = index.parent / name
        if name in _NOT_NEEDED or not isinstance(kind, list) or kind[0] is None:
            continue
        if not part.is_dir():
            raise NotFoundError(f"{index} names {name}, but {part} is missing", field="model")
        if (part / "config.json").is_file():  # else it is a scheduler or a tokenizer
            read_config(part / "config.json")
            check_weights(part)


def _check_whole(folder: Path, pipeline: Any) -> None:
    """Raise if the files of a part hold fewer numbers than the part has: a library would fill in
    the others at random."""
    for name, module in pipeline.components.items():
        if isinstance(module, nn.Module):
            needed = sum(parameter.numel() for parameter in module.parameters())
            if numbers_in(folder / name) < needed:
                raise CorruptArtifactError(
                    f"the weights in {folder / name} lack some of the {needed} numbers that its "
                    "config.json asks for; copy them anew",
                    field="model",
                )

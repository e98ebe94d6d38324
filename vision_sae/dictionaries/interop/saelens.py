"""Checkpoints of SAELens (Bloom, Chanin et al.), up to version 6: read, and written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

import vision_sae
from vision_sae.dictionaries.batch_topk import BatchTopKSae
from vision_sae.dictionaries.gated import GatedSae
from vision_sae.dictionaries.interop.checkpoint import (
    Settings,
    Tensors,
    directory_of,
    has_files,
    read_safetensors,
    read_settings,
)
from vision_sae.dictionaries.interop.folding import Weights, bias_shift, subtracting, unit_rows
from vision_sae.dictionaries.jumprelu import JumpReluSae
from vision_sae.dictionaries.protocol import Dictionary
from vision_sae.dictionaries.relu import ReluSae
from vision_sae.dictionaries.sae import Sae
from vision_sae.dictionaries.topk import TopKSae
from vision_sae.errors import InvalidInputError
from vision_sae.files import publishing, write_json

NAME = "saelens"
CONFIG = "cfg.json"
WEIGHTS = "sae_weights.safetensors"
LAYOUT = "6.0.0"
"""The first version that reads this layout; a reader that finds none takes it for an older one."""
_FINETUNING = "scaling_factor"
_TENSORS = {
    "standard": ("W_enc", "b_enc", "W_dec", "b_dec"),
    "topk": ("W_enc", "b_enc", "W_dec", "b_dec"),
    "jumprelu": ("W_enc", "b_enc", "W_dec", "b_dec", "threshold"),
    "gated": ("W_enc", "b_gate", "r_mag", "b_mag", "W_dec", "b_dec"),
}


def recognises(path: Path) -> bool:
    """Whether the files of this format are there."""
    return has_files(path, CONFIG, WEIGHTS)


def load(path: Path) -> tuple[Dictionary, dict[str, Any]]:
    """The dictionary, and its configuration."""
    settings = read_settings(directory_of(path) / CONFIG)
    tensors = read_safetensors(directory_of(path) / WEIGHTS)
    architecture = _architecture(settings)
    settings.only(
        "normalize_activations",
        (None, False, "none"),
        None,
        "it scales inputs by what is not in these files; fold the scale in with SAELens' "
        "fold_activation_norm_scaling_factor where there is one, and save it again",
    )
    w_enc = tensors.take("W_enc", -1, -1)
    dim, width = w_enc.shape
    settings.agrees("d_in", dim)
    settings.agrees("d_sae", width)
    weights = Weights(
        w_enc=w_enc.T.contiguous(),
        b_enc=tensors.take("b_gate" if architecture == "gated" else "b_enc", width),
        w_dec=tensors.take("W_dec", width, dim),
        b_dec=tensors.take("b_dec", dim),
    )
    _refuse_others(tensors, architecture, width)
    centred = settings.flag("apply_b_dec_to_input", True)
    shift = torch.zeros(()) if centred else bias_shift(weights)
    if not centred:
        weights = subtracting(weights)
    if architecture == "topk" and settings.flag("rescale_acts_by_decoder_norm", False):
        weights = unit_rows(weights)
    keywords = weights._asdict()
    said = dict(settings.values)
    if architecture == "topk":
        return TopKSae(k=_k(settings, width), **keywords), said
    if architecture == "jumprelu":
        threshold = tensors.take("threshold", width).clamp_min(0)
        return JumpReluSae(threshold=threshold, **keywords), said
    if architecture == "gated":
        r_mag, b_mag = tensors.take("r_mag", width), tensors.take("b_mag", width)
        b_mag = (b_mag.double() + r_mag.double().exp() * shift).float()
        return GatedSae(r_mag=r_mag, b_mag=b_mag, **keywords), said
    return ReluSae(**keywords), said


def _activation(settings: Settings) -> str:
    """The activation that versions before 6 name beside the architecture."""
    return settings.text("activation_fn", settings.text("activation_fn_str", "relu"))


def _architecture(settings: Settings) -> str:
    architecture = settings.text("architecture", "standard")
    activation = _activation(settings)
    if architecture == "standard" and activation == "topk":
        return "topk"
    if architecture not in _TENSORS:
        raise InvalidInputError(
            f"{settings.path} has architecture {architecture!r}; {', '.join(_TENSORS)} can be "
            "imported, save what is still in training with SAELens' save_inference_model",
            field="architecture",
        )
    if activation not in ("relu", "topk"):
        raise InvalidInputError(
            f"{settings.path} has activation {activation!r}; relu and topk can be imported",
            field="activation_fn",
        )
    return architecture


def _k(settings: Settings, width: int) -> int:
    if "k" in settings.values:
        return settings.active("k", width)
    return settings.section("activation_fn_kwargs").active("k", width)


def _refuse_others(tensors: Tensors, architecture: str, width: int) -> None:
    """Old versions also wrote finetuning factors; those of 1 change nothing."""
    known = _TENSORS[architecture]
    if _FINETUNING in tensors.stored and bool((tensors.take(_FINETUNING, width) == 1).all()):
        known = (*known, _FINETUNING)
    tensors.no_others(*known)


def save(dictionary: Dictionary, directory: Path, metadata: Mapping[str, Any]) -> None:
    """Publish ``dictionary`` at ``directory`` in the layout that SAELens 6 loads from disk.

    BatchTopK becomes JumpReLU with one threshold for all features, as in SAELens itself. Raises
    `InvalidInputError`, before anything is written, for what is not one of its architectures.
    """
    if not isinstance(dictionary, Sae):
        raise InvalidInputError(
            f"a dictionary of architecture {dictionary.architecture} has no SAELens layout; topk, "
            "batch_topk, jumprelu, relu and gated autoencoders have one",
            field="dictionary",
        )
    settings, tensors = _architecture_of(dictionary)
    tensors |= {
        "W_enc": dictionary.w_enc.T,
        "W_dec": dictionary.w_dec,
        "b_dec": dictionary.b_dec,
    }
    configuration = {
        "d_in": dictionary.dim,
        "d_sae": dictionary.width,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": LAYOUT, "sae_lens_training_version": None, **metadata},
        **settings,
    }
    with publishing(directory) as (staging, manifest):
        manifest |= {"format": NAME, "code_version": vision_sae.__version__}
        save_file({name: t.contiguous() for name, t in tensors.items()}, staging / WEIGHTS)
        write_json(staging / CONFIG, configuration)


def _architecture_of(sae: Sae) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The settings and tensors that tell the architecture."""
    biases = {"b_enc": sae.b_enc}
    if isinstance(sae, TopKSae):
        settings = {"architecture": "topk", "k": sae.k, "rescale_acts_by_decoder_norm": False}
        return settings, biases
    if isinstance(sae, BatchTopKSae | JumpReluSae):
        threshold = sae.threshold.expand(sae.width)
        return {"architecture": "jumprelu"}, biases | {"threshold": threshold}
    if isinstance(sae, GatedSae):
        gated = {"b_gate": sae.b_enc, "r_mag": sae.r_mag, "b_mag": sae.b_mag}
        return {"architecture": "gated"}, gated
    if isinstance(sae, ReluSae):
        return {"architecture": "standard"}, biases
    raise InvalidInputError(
        f"autoencoders of architecture {sae.architecture} have no SAELens layout",
        field="dictionary",
    )

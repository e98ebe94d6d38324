"""Checkpoints of llamascopium (OpenMOSS, "Llama Scope"; He et al. 2024)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from vision_sae.dictionaries.interop.checkpoint import (
    Settings,
    Tensors,
    directory_of,
    has_files,
    read_safetensors,
    read_settings,
)
from vision_sae.dictionaries.interop.folding import (
    Weights,
    on_site_vectors,
    subtracting,
    unit_rows,
)
from vision_sae.dictionaries.jumprelu import JumpReluSae
from vision_sae.dictionaries.protocol import Dictionary
from vision_sae.dictionaries.relu import ReluSae
from vision_sae.dictionaries.topk import TopKSae
from vision_sae.errors import CorruptArtifactError, InvalidInputError

NAME = "llamascopium"
CONFIG = "config.json"
WEIGHTS = "sae_weights.safetensors"
NORMS = "dataset_average_activation_norm."
LOG_THRESHOLD = "activation_function.log_jumprelu_threshold"


def recognises(path: Path) -> bool:
    """Whether the files of this format are there."""
    return has_files(path, CONFIG, WEIGHTS)


def load(path: Path) -> tuple[Dictionary, dict[str, Any]]:
    """The dictionary, and its configuration. It encodes ``x * sqrt(D) / norm``, without b_D."""
    settings = read_settings(directory_of(path) / CONFIG)
    tensors = read_safetensors(directory_of(path) / WEIGHTS)
    _refuse_what_is_no_sae(settings)
    w_enc = tensors.take("W_E", -1, -1)
    dim, width = w_enc.shape
    settings.agrees("d_model", dim)
    settings.agrees("expansion_factor", width / dim)
    has_bias = settings.flag("use_decoder_bias", True)
    weights = Weights(
        w_enc=w_enc.T.contiguous(),
        b_enc=tensors.take("b_E", width),
        w_dec=tensors.take("W_D", width, dim),
        b_dec=tensors.take("b_D", dim) if has_bias else w_enc.new_zeros(dim),
    )
    norms = (name for name in tensors.stored if name.startswith(NORMS))
    tensors.no_others("W_E", "b_E", "W_D", "b_D", LOG_THRESHOLD, *norms)
    weights = subtracting(weights)
    if settings.flag("sparsity_include_decoder_norm", True):
        weights = unit_rows(weights)
    scale = _input_scale(settings, tensors, dim)
    return (
        _dictionary(settings, tensors, on_site_vectors(weights, scale=scale), scale),
        dict(settings.values),
    )


def _refuse_what_is_no_sae(settings: Settings) -> None:
    settings.only(
        "sae_type", ("sae",), "sae", "it is another kind of sparse dictionary; use an SAE"
    )
    settings.only(
        "use_glu_encoder",
        (False,),
        False,
        "its encoder is not linear; retrain with use_glu_encoder false",
    )
    site = settings.values.get("hook_point_in")
    settings.only(
        "hook_point_out",
        (site,),
        site,
        f"it reads {site} and writes another site; import an SAE of one site",
    )


def _input_scale(settings: Settings, tensors: Tensors, dim: int) -> float:
    mode = settings.text("norm_activation", "dataset-wise")
    if mode == "inference":  # already folded into the weights
        return 1.0
    if mode != "dataset-wise":
        raise InvalidInputError(
            f"{settings.path}: norm_activation {mode!r} scales each input by its own norm, which "
            "weights cannot express; retrain with dataset-wise",
            field="norm_activation",
        )
    norm = float(tensors.take(NORMS + settings.text("hook_point_in")))
    if norm <= 0:
        raise CorruptArtifactError(f"{tensors.path}: the average activation norm is {norm}")
    return math.sqrt(dim) / norm


def _dictionary(settings: Settings, tensors: Tensors, weights: Weights, scale: float) -> Dictionary:
    keywords, width = weights._asdict(), len(weights.w_dec)
    activation = settings.text("act_fn", "relu").lower()
    if activation == "relu":
        return ReluSae(**keywords)
    if activation == "topk":
        return TopKSae(k=settings.active("top_k", width), **keywords)
    if activation == "jumprelu":
        threshold = tensors.take(LOG_THRESHOLD, width).double().exp() / scale
        return JumpReluSae(threshold=threshold.float(), **keywords)
    raise InvalidInputError(
        f"{settings.path} has act_fn {activation!r}; relu, topk and jumprelu can be imported, "
        "convert a batchtopk SAE to jumprelu first",
        field="act_fn",
    )

"""Checkpoints of llamascopium (OpenMOSS, "Llama Scope"; He et al. 2024)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from vision_sae.dictionaries.interop.checkpoint import (
    Tensors,
    directory_of,
    has_files,
    read_safetensors,
)
from vision_sae.dictionaries.interop.folding import (
    SaeWeights,
    on_site_vectors,
    subtracting,
    unit_rows,
)
from vision_sae.dictionaries.interop.format import FORMATS, Format, Sign
from vision_sae.dictionaries.interop.settings import (
    Accepted,
    ForeignSettings,
    Ignored,
    Known,
    read_settings,
    words,
)
from vision_sae.dictionaries.kinds.jumprelu import JumpReluSae
from vision_sae.dictionaries.kinds.relu import ReluSae
from vision_sae.dictionaries.kinds.topk import TopKSae
from vision_sae.dictionaries.protocol import Dictionary
from vision_sae.errors import CorruptArtifactError, InvalidInputError

NAME = "llamascopium"
CONFIG = "config.json"
WEIGHTS = "sae_weights.safetensors"
FILES: tuple[str, ...] = (CONFIG, WEIGHTS)
NORMS = "dataset_average_activation_norm."
LOG_THRESHOLD = "activation_function.log_jumprelu_threshold"
_SUBTRACTS = "apply_decoder_bias_to_pre_encoder"
SETTINGS = Known(
    used=words(f"""
        d_model d_sae expansion_factor hook_point_in hook_point_out use_decoder_bias act_fn top_k
        sparsity_include_decoder_norm {_SUBTRACTS}
    """),
    accepted={
        "sae_type": Accepted(("sae",), "it is another kind of sparse dictionary; use an SAE"),
        "use_glu_encoder": Accepted(
            (False,), "its encoder is not linear; retrain with use_glu_encoder false"
        ),
        "norm_activation": Accepted(
            ("dataset-wise", "inference"),
            "it scales each input by its own norm, which weights cannot express; retrain with "
            "dataset-wise",
        ),
        "jump_relu_threshold": Accepted(
            (0.0, 0), "thresholds are read from the tensors; write them there"
        ),
    },
    without_effect=words("""
        device dtype force_unit_decoder_norm jumprelu_threshold_window promote_act_fn_dtype
        sae_pretrained_name_or_path sparsity_threshold_for_csr
        sparsity_threshold_for_triton_spmm_kernel strict_loading use_triton_kernel
    """),
)
"""``config.json``, since it lies beside ``sae_weights.safetensors`` (2025)."""


def recognises(path: Path) -> bool:
    """Whether the files of this format are there."""
    return has_files(path, *FILES)


def load(path: Path, ignored: Ignored) -> tuple[Dictionary, dict[str, Any]]:
    """The dictionary, and its configuration. It encodes ``x * sqrt(D) / norm``; since the middle
    of 2025 without b_D, before that as a setting says."""
    settings = read_settings(directory_of(path) / CONFIG, ignored)
    settings.check(SETTINGS)
    site = settings.values.get("hook_point_in")
    settings.accept(
        "hook_point_out",
        Accepted((site, None), "it reads that site and writes another; use an SAE of one site"),
    )
    tensors = read_safetensors(directory_of(path) / WEIGHTS)
    w_enc = tensors.take("W_E", -1, -1)
    dim, width = w_enc.shape
    settings.agrees("d_model", dim)
    settings.agrees("d_sae", width)
    settings.expands("expansion_factor", dim, width)
    has_bias = settings.flag("use_decoder_bias", True)
    weights = SaeWeights(
        w_enc=w_enc.T.contiguous(),
        b_enc=tensors.take("b_E", width),
        w_dec=tensors.take("W_D", width, dim),
        b_dec=tensors.take("b_D", dim) if has_bias else w_enc.new_zeros(dim),
    )
    others = [name for name in tensors.stored if name.startswith(NORMS)]
    if _activation(settings) == "jumprelu":
        others.append(LOG_THRESHOLD)
    tensors.no_others("W_E", "b_E", "W_D", "b_D", *others)
    if not settings.flag(_SUBTRACTS, False):
        weights = subtracting(weights)
    if settings.flag("sparsity_include_decoder_norm", True):
        weights = unit_rows(weights)
    scale = _input_scale(settings, tensors, dim)
    return (
        _dictionary(settings, tensors, on_site_vectors(weights, scale=scale), scale),
        dict(settings.values),
    )


def _input_scale(settings: ForeignSettings, tensors: Tensors, dim: int) -> float:
    if settings.text("norm_activation", "dataset-wise") == "inference":
        return 1.0  # already folded into the weights
    norm = float(tensors.take(NORMS + settings.text("hook_point_in")))
    if norm <= 0:
        raise CorruptArtifactError(f"{tensors.path}: the average activation norm is {norm}")
    return math.sqrt(dim) / norm


def _activation(settings: ForeignSettings) -> str:
    return settings.text("act_fn", "relu").lower()


def _dictionary(
    settings: ForeignSettings, tensors: Tensors, weights: SaeWeights, scale: float
) -> Dictionary:
    keywords, width = weights._asdict(), len(weights.w_dec)
    activation = _activation(settings)
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


FORMATS.register(
    Format(
        name=NAME,
        summary="llamascopium (OpenMOSS; He et al. 2024)",
        versions="since 2025",
        sign=Sign.NAMES,
        recognises=recognises,
        load=load,
        files=FILES,
    )
)

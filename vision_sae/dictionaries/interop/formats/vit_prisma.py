"""Checkpoints of ViT-Prisma (Joseph et al. 2025): a state dict with a sibling configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vision_sae.dictionaries.interop.checkpoint import (
    Tensors,
    directory_of,
    one_file,
    only_file,
    read_torch,
)
from vision_sae.dictionaries.interop.folding import SaeWeights
from vision_sae.dictionaries.interop.format import FORMATS, Format, Sign
from vision_sae.dictionaries.interop.settings import (
    Accepted,
    ForeignSettings,
    Ignored,
    Known,
    read_settings,
    words,
)
from vision_sae.dictionaries.kinds.gated import GatedSae
from vision_sae.dictionaries.kinds.relu import ReluSae
from vision_sae.dictionaries.kinds.topk import TopKSae
from vision_sae.dictionaries.protocol import Dictionary
from vision_sae.errors import CorruptArtifactError

NAME = "vit-prisma"
CONFIG = "config.json"
SUFFIX = ".pt"
FILES: tuple[str, ...] = (CONFIG,)
_NORMALIZE = "normalize_activations"
_ACTIVATION = "activation_fn_str"
_ARGUMENTS = "activation_fn_kwargs"
SETTINGS = Known(
    used=words(f"d_in d_sae expansion_factor {_ARGUMENTS}"),
    accepted={
        "architecture": Accepted(("standard", "gated"), "use one of these"),
        "is_transcoder": Accepted((False,), "it writes another site; use an SAE of one site"),
        _ACTIVATION: Accepted(("relu", "topk"), "use one of these"),
        _NORMALIZE: Accepted(
            ("none", None, False),
            "it normalises each input by its own statistics, which weights cannot express; use a "
            "checkpoint that was trained with normalize_activations none",
        ),
    },
    without_effect=words("""
        _device _dtype b_dec_init_method cached_activations_path checkpoint_path cls_token_only
        context_size d_out dataset_name dataset_path dataset_train_path dataset_val_path
        dead_feature_threshold dead_feature_window device dtype feature_sampling_window
        from_pretrained_path hook_point hook_point_head_index hook_point_layer image_size
        initialization_method is_training l1_coefficient layer_out_subtype layer_subtype
        log_to_wandb lp_norm lr lr_scheduler_name lr_warm_up_steps max_grad_norm
        min_explained_variance min_l0 model_class_name model_name model_path n_batches_in_buffer
        n_checkpoints n_validation_runs num_epochs num_patch num_workers out_hook_point
        out_hook_point_layer seed store_batch_size tokens_per_buffer total_training_images
        total_training_steps total_training_tokens train_batch_size
        transcoder_with_skip_connection use_cached_activations use_ghost_grads use_patches_only
        verbose vit_model_cfg wandb_entity wandb_log_frequency wandb_project
    """),
)
"""``config.json``, a ``VisionModelSAERunnerConfig`` of any version."""
_GATED = Accepted(("relu",), "the k largest of what passes the gate cannot be expressed; use relu")
_KNOWN_ARGUMENTS = Known(used=words("k"), accepted={}, without_effect=frozenset())


def recognises(path: Path) -> bool:
    """Whether there is one file of this kind, beside a configuration."""
    return only_file(path, SUFFIX) is not None and (directory_of(path) / CONFIG).is_file()


def load(path: Path, ignored: Ignored) -> tuple[Dictionary, dict[str, Any]]:
    """The dictionary, and its configuration. It encodes x - b_dec."""
    file = one_file(path, SUFFIX)
    settings = read_settings(directory_of(path) / CONFIG, ignored)
    settings.check(SETTINGS)
    if _NORMALIZE not in settings.values:
        raise CorruptArtifactError(
            f"{settings.path} has no {_NORMALIZE}, which ViT-Prisma takes for layer_norm; write "
            'the one that it was trained with there, "none" being what can be imported'
        )
    stored = read_torch(file)
    tensors = Tensors(file, stored)
    if "state_dict" in stored:
        tensors.no_others("state_dict")
        tensors = tensors.section("state_dict")
    gated = settings.text("architecture", "standard") == "gated"
    w_enc = tensors.take("W_enc", -1, -1)
    dim, width = w_enc.shape
    settings.agrees("d_in", dim)
    settings.agrees("d_sae", width)
    settings.expands("expansion_factor", dim, width)
    weights = SaeWeights(
        w_enc=w_enc.T.contiguous(),
        b_enc=tensors.take("b_gate" if gated else "b_enc", width),
        w_dec=tensors.take("W_dec", width, dim),
        b_dec=tensors.take("b_dec", dim),
    )
    return _dictionary(settings, tensors, weights, gated), dict(settings.values)


def _dictionary(
    settings: ForeignSettings, tensors: Tensors, weights: SaeWeights, gated: bool
) -> Dictionary:
    width = len(weights.w_dec)
    arguments = _arguments(settings)
    if gated:
        settings.accept(_ACTIVATION, _GATED)
        tensors.no_others("W_enc", "b_enc", "W_dec", "b_dec", "b_gate", "r_mag", "b_mag")
        magnitude = {name: tensors.take(name, width) for name in ("r_mag", "b_mag")}
        return GatedSae(**magnitude, **weights._asdict())
    tensors.no_others("W_enc", "b_enc", "W_dec", "b_dec")
    if settings.text(_ACTIVATION, "relu") == "relu":
        return ReluSae(**weights._asdict())
    return TopKSae(k=arguments.active("k", width), **weights._asdict())


def _arguments(settings: ForeignSettings) -> ForeignSettings:
    """The arguments of the activation function, which has to be named where it has any."""
    if not settings.values.get(_ARGUMENTS):
        return ForeignSettings(settings.path, {}, f"{_ARGUMENTS}.")
    arguments = settings.section(_ARGUMENTS)
    arguments.check(_KNOWN_ARGUMENTS)
    settings.text(_ACTIVATION)
    return arguments


FORMATS.register(
    Format(
        name=NAME,
        summary="ViT-Prisma (Joseph et al. 2025)",
        versions="all",
        sign=Sign.SUFFIX,
        recognises=recognises,
        load=load,
        files=FILES,
    )
)

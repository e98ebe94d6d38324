"""Checkpoints of SAELens (Bloom, Chanin et al.), up to version 6: read, and written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from vision_sae.dictionaries.interop.checkpoint import (
    Tensors,
    directory_of,
    has_files,
    read_safetensors,
)
from vision_sae.dictionaries.interop.folding import SaeWeights, bias_shift, subtracting, unit_rows
from vision_sae.dictionaries.interop.format import FORMATS, Format, Sign
from vision_sae.dictionaries.interop.settings import (
    Accepted,
    ForeignSettings,
    Ignored,
    Known,
    read_settings,
    words,
)
from vision_sae.dictionaries.kinds.batch_topk import BatchTopKSae
from vision_sae.dictionaries.kinds.gated import GatedSae
from vision_sae.dictionaries.kinds.jumprelu import JumpReluSae
from vision_sae.dictionaries.kinds.relu import ReluSae
from vision_sae.dictionaries.kinds.topk import TopKSae
from vision_sae.dictionaries.protocol import Dictionary
from vision_sae.dictionaries.sae import Sae
from vision_sae.errors import InvalidInputError, quoted
from vision_sae.files import publishing, write_json
from vision_sae.version import CODE_VERSION

NAME = "saelens"
CONFIG = "cfg.json"
WEIGHTS = "sae_weights.safetensors"
FILES: tuple[str, ...] = (CONFIG, WEIGHTS)
LAYOUT = "6.0.0"
"""The first version that reads this layout; a reader that finds none takes it for an older one."""
NEWEST = 6
_TENSORS = {
    "standard": ("W_enc", "b_enc", "W_dec", "b_dec"),
    "topk": ("W_enc", "b_enc", "W_dec", "b_dec"),
    "jumprelu": ("W_enc", "b_enc", "W_dec", "b_dec", "threshold"),
    "gated": ("W_enc", "b_gate", "r_mag", "b_mag", "W_dec", "b_dec"),
}
_FACTORS = ("scaling_factor", "finetuning_scaling_factor")
_ACTIVATIONS = ("activation_fn", "activation_fn_str")
_ARGUMENTS = "activation_fn_kwargs"
SETTINGS = Known(
    used=words(f"""
        d_in d_sae k apply_b_dec_to_input rescale_acts_by_decoder_norm metadata sae_lens_version
        hook_name_out finetuning_scaling_factor {_ARGUMENTS} {" ".join(_ACTIVATIONS)}
    """),
    accepted={
        "architecture": Accepted(
            tuple(_TENSORS),
            "save what is still in training with SAELens' save_inference_model; of other kinds, "
            "use one of these",
        ),
        "normalize_activations": Accepted(
            ("none", None, False),
            "it scales inputs by what is not in these files; fold the scale in with SAELens' "
            "fold_activation_norm_scaling_factor where there is one, and save it again",
        ),
        # Heads side by side are one vector: there is nothing to reshape in a store's vectors.
        "reshape_activations": Accepted(("none", "hook_z", None), "use one of these"),
        "use_error_term": Accepted((False,), "it adds its own error to what it decodes"),
    },
    without_effect=words("""
        act_store_device activations_mixing_fraction adam_beta1 adam_beta2 autocast autocast_lm
        aux_loss_coefficient b_dec_init_method cached_activations_path checkpoint_path compile_llm
        compile_sae context_size dataset_path dataset_trust_remote_code
        dead_feature_estimation_method dead_feature_threshold dead_feature_window
        decoder_heuristic_init decoder_heuristic_init_norm decoder_init_norm
        decoder_orthogonal_init device disable_concat_sequences dtype eval_batch_size_prompts
        eval_every_n_wandb_logs exclude_special_tokens expansion_factor feature_reinit_scale
        feature_sampling_method feature_sampling_window finetuning_method finetuning_tokens
        from_pretrained_path hf_hook_name hook_eval hook_head_index hook_layer hook_name hook_point
        hook_point_eval hook_point_head_index hook_point_layer init_encoder_as_decoder_transpose
        is_dataset_tokenized jumprelu_bandwidth jumprelu_init_threshold
        jumprelu_sparsity_loss_mode jumprelu_ste_to_input jumprelu_tanh_scale l0_coefficient
        l0_warm_up_steps l1_coefficient l1_warm_up_steps llm_compilation_mode
        log_activations_store_to_wandb log_optimizer_state_to_wandb log_to_wandb lp_norm lr
        lr_decay_steps lr_end lr_scheduler_name lr_warm_up_steps model_class_name
        model_from_pretrained_kwargs model_kwargs model_name mse_loss_normalization
        n_batches_for_norm_estimate n_batches_in_buffer n_checkpoints n_eval_batches
        n_restart_cycles neuronpedia_id noise_scale normalize_sae_decoder pre_act_loss_coefficient
        prepend_bos resample_batches resume run_name sae_compilation_mode
        sae_lens_training_version scale_sparsity_penalty_by_decoder_norm seed seqpos_slice
        sequence_separator_token store_batch_size store_batch_size_prompts streaming target_l0
        tokens_per_buffer topk_threshold_lr total_training_tokens train_batch_size
        train_batch_size_tokens training_tokens use_cached_activations use_chat_formatting
        use_ghost_grads use_sparse_activations verbose wandb_entity wandb_id wandb_log_frequency
        wandb_project
    """),
)
"""``cfg.json``, of versions to 6; up to version 5 it may hold the whole configuration of a run."""
_KNOWN_ARGUMENTS = Known(used=words("k"), accepted={}, without_effect=frozenset())


def recognises(path: Path) -> bool:
    """Whether the files of this format are there."""
    return has_files(path, *FILES)


def load(path: Path, ignored: Ignored) -> tuple[Dictionary, dict[str, Any]]:
    """The dictionary, and its configuration."""
    settings = read_settings(directory_of(path) / CONFIG, ignored)
    settings.check(SETTINGS)
    _check_origin(settings)
    architecture = _architecture(settings)
    if settings.values.get(_ARGUMENTS):
        settings.section(_ARGUMENTS).check(_KNOWN_ARGUMENTS)
    tensors = read_safetensors(directory_of(path) / WEIGHTS)
    w_enc = tensors.take("W_enc", -1, -1)
    dim, width = w_enc.shape
    settings.agrees("d_in", dim)
    settings.agrees("d_sae", width)
    weights = SaeWeights(
        w_enc=w_enc.T.contiguous(),
        b_enc=tensors.take("b_gate" if architecture == "gated" else "b_enc", width),
        w_dec=tensors.take("W_dec", width, dim),
        b_dec=tensors.take("b_dec", dim),
    )
    factors = [name for name in _FACTORS if name in tensors.stored][:1]
    tensors.no_others(*_TENSORS[architecture], *factors)
    centred = settings.flag("apply_b_dec_to_input", True)
    shift = torch.zeros(()) if centred else bias_shift(weights)
    if not centred:
        weights = subtracting(weights)
    if architecture == "topk" and settings.flag("rescale_acts_by_decoder_norm", False):
        weights = unit_rows(weights)
    weights = _finetuned(settings, tensors, weights, *factors)
    return _dictionary(settings, tensors, weights, architecture, shift), dict(settings.values)


def _dictionary(
    settings: ForeignSettings,
    tensors: Tensors,
    weights: SaeWeights,
    architecture: str,
    shift: Tensor,
) -> Dictionary:
    keywords, width = weights._asdict(), len(weights.w_dec)
    if architecture == "topk":
        return TopKSae(k=_k(settings, width), **keywords)
    if architecture == "jumprelu":
        threshold = tensors.take("threshold", width).clamp_min(0)
        return JumpReluSae(threshold=threshold, **keywords)
    if architecture == "gated":
        r_mag, b_mag = tensors.take("r_mag", width), tensors.take("b_mag", width)
        b_mag = (b_mag.double() + r_mag.double().exp() * shift).float()
        return GatedSae(r_mag=r_mag, b_mag=b_mag, **keywords)
    return ReluSae(**keywords)


def _check_origin(settings: ForeignSettings) -> None:
    """Refuse versions that are not known, and what reads one site and writes another."""
    metadata = settings.values.get("metadata") or {}
    for said in (settings.values, metadata if isinstance(metadata, dict) else {}):
        version = said.get("sae_lens_version")
        if version is not None and str(version).split(".")[0] not in map(str, range(NEWEST + 1)):
            raise InvalidInputError(
                f"{settings.path}: sae_lens_version {quoted(version)} cannot be imported, only "
                f"versions to {NEWEST}; save it with one of them",
                field="sae_lens_version",
            )
        out = said.get("hook_name_out")
        if out is not None and out != said.get("hook_name"):
            raise InvalidInputError(
                f"{settings.path}: hook_name_out {quoted(out)} is not the site that it reads; "
                "import an SAE of one site",
                field="hook_name_out",
            )


def _architecture(settings: ForeignSettings) -> str:
    """What the features do: named by the architecture, to version 5 by the activation too."""
    architecture = settings.text("architecture", "standard")
    named = [key for key in _ACTIVATIONS if key in settings.values]
    if architecture == "standard" and any(settings.values[key] == "topk" for key in named):
        architecture = "topk"
    fits = "topk" if architecture == "topk" else "relu"
    for key in named:
        settings.accept(
            key,
            Accepted(
                (fits,),
                f"nothing else can be expressed with architecture {architecture!r}; train it with "
                f"{fits}",
            ),
        )
    return architecture


def _finetuned(
    settings: ForeignSettings, tensors: Tensors, weights: SaeWeights, name: str = _FACTORS[-1]
) -> SaeWeights:
    """Versions to 5 may multiply activations, feature by feature, before they are decoded: so are
    the decoder's rows here."""
    wanted = settings.flag("finetuning_scaling_factor", False)
    if not wanted and name not in tensors.stored:
        return weights
    factors = tensors.take(name, len(weights.w_dec))
    if not wanted and not bool((factors == 1).all()):
        raise InvalidInputError(
            f"{tensors.path}: {name} is not all 1, but {settings.path} does not say that "
            "finetuning_scaling_factor is true; make them agree in SAELens",
            field="finetuning_scaling_factor",
        )
    return weights._replace(w_dec=weights.w_dec * factors[:, None])


def _k(settings: ForeignSettings, width: int) -> int:
    """The k, which versions to 5 keep among the arguments of the activation."""
    if _ARGUMENTS not in settings.values:
        return settings.active("k", width)
    k = settings.section(_ARGUMENTS).active("k", width)
    settings.agrees("k", k)
    return k


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
        manifest |= {"format": NAME, "code_version": CODE_VERSION}
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


FORMATS.register(
    Format(
        name=NAME,
        summary="SAELens (Bloom, Chanin et al.)",
        versions="versions to 6",
        sign=Sign.RARE_NAMES,
        recognises=recognises,
        load=load,
        files=FILES,
        save=save,
    )
)

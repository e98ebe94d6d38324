"""The settings that each library writes, and what becomes of its checkpoint when one is changed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tests.worlds.foreign import (
    CENTER,
    DIM,
    LINEAR,
    MSAE_SCALE,
    NORM,
    SITE,
    WIDTH,
    K,
    W,
    reconstruct,
    saev_header,
    top_k,
    write_llamascopium,
    write_msae,
    write_prisma,
    write_saelens,
    write_saev,
    write_sdxl_unbox,
    write_sparsify,
)
from vision_sae.dictionaries.interop.conversion import import_sae

PRE = (W.x - W.b_dec) @ W.W_enc + W.b_enc
PRE_RAW = W.x @ W.W_enc + W.b_enc
MSAE_PRE = ((W.x - CENTER) * MSAE_SCALE - W.b_dec) @ W.W_enc + W.b_enc
STRANGE: tuple[Any, ...] = (
    "strange",
    -1,
    0.25,
    1e300,
    True,
    False,
    None,
    [],
    {},
    [1],
    {"strange": 1},
)


class Checkpoint(NamedTuple):
    """A valid checkpoint."""

    settings: dict[str, Any]
    """All that its library writes."""
    write: Callable[[Path, dict[str, Any]], Path]
    expected: Tensor
    """Its reconstruction of the inputs."""


def decoded(activations: Tensor) -> Tensor:
    return activations @ W.W_dec + W.b_dec


def dictionary_learning(path: Path, settings: dict[str, Any]) -> Path:
    (path / "config.json").write_text(json.dumps(settings))
    counters = {"k": torch.tensor(K, dtype=torch.int32), "threshold": torch.tensor(0.8)}
    biases = {"encoder.bias": W.b_enc, "b_dec": W.b_dec}
    torch.save(LINEAR | counters | biases, path / "ae.pt")
    return path


def saelens(path: Path, settings: dict[str, Any]) -> Path:
    return write_saelens(path / "sae", settings)


SAELENS_5 = {
    "architecture": "standard",
    "d_in": DIM,
    "d_sae": WIDTH,
    "dtype": "float32",
    "device": "cpu",
    "model_name": "gpt2",
    "hook_name": "blocks.1.hook_resid_post",
    "hook_layer": 1,
    "hook_head_index": None,
    "activation_fn_str": "topk",
    "activation_fn_kwargs": {"k": K},
    "apply_b_dec_to_input": True,
    "finetuning_scaling_factor": False,
    "sae_lens_training_version": "5.11.0",
    "prepend_bos": True,
    "dataset_path": "x",
    "dataset_trust_remote_code": False,
    "context_size": 64,
    "normalize_activations": "none",
    "neuronpedia_id": None,
    "model_from_pretrained_kwargs": {},
    "seqpos_slice": [None],
}
SAELENS_6 = {
    "d_in": DIM,
    "d_sae": WIDTH,
    "dtype": "float32",
    "device": "cpu",
    "apply_b_dec_to_input": True,
    "normalize_activations": "none",
    "reshape_activations": "none",
    "metadata": {"sae_lens_version": "6.54.12", "hook_name": "blocks.1.hook_resid_post"},
    "architecture": "topk",
    "k": K,
    "rescale_acts_by_decoder_norm": False,
}
SPARSIFY = {
    "activation": "topk",
    "expansion_factor": 32,
    "normalize_decoder": True,
    "num_latents": WIDTH,
    "k": K,
    "multi_topk": False,
    "skip_connection": False,
    "transcode": False,
    "d_in": DIM,
}
SPARSIFY_2024 = {
    "expansion_factor": WIDTH / DIM,
    "normalize_decoder": True,
    "k": K,
    "signed": False,
    "d_in": DIM,
}
SDXL_UNBOX = {"n_dirs_local": WIDTH, "d_model": DIM, "k": K, "auxk": 4, "dead_steps_threshold": 9}
DICTIONARY_LEARNING = {
    "trainer": {
        "trainer_class": "BatchTopKTrainer",
        "dict_class": "BatchTopKSAE",
        "lr": 1e-4,
        "steps": 10,
        "auxk_alpha": 1 / 32,
        "warmup_steps": 1,
        "decay_start": None,
        "threshold_beta": 0.999,
        "threshold_start_step": 1,
        "top_k_aux": 2,
        "seed": 0,
        "activation_dim": DIM,
        "dict_size": WIDTH,
        "k": K,
        "device": "cpu",
        "layer": 3,
        "lm_name": "m",
        "wandb_name": "w",
        "submodule_name": "s",
    },
    "buffer": {
        "d_submodule": DIM,
        "io": "out",
        "n_ctxs": 8,
        "ctx_len": 8,
        "refresh_batch_size": 8,
        "out_batch_size": 8,
        "device": "cpu",
    },
}
LLAMASCOPIUM = {
    "sae_type": "sae",
    "d_model": DIM,
    "expansion_factor": WIDTH / DIM,
    "use_decoder_bias": True,
    "act_fn": "topk",
    "norm_activation": "dataset-wise",
    "sparsity_include_decoder_norm": False,
    "top_k": K,
    "use_triton_kernel": False,
    "sparsity_threshold_for_triton_spmm_kernel": 0.996,
    "jumprelu_threshold_window": 2.0,
    "hook_point_in": SITE,
    "hook_point_out": SITE,
    "use_glu_encoder": False,
}
LLAMASCOPIUM_2025 = LLAMASCOPIUM | {
    "jump_relu_threshold": 0.0,
    "apply_decoder_bias_to_pre_encoder": False,
    "force_unit_decoder_norm": False,
}
SPARSITY = {"cls": "NoSparsity", "params": {"kind": "no-sparsity"}}
SAEV = saev_header(5, "TopK", kind="top-k", top_k=K, sparsity=SPARSITY)
SAEV["cfg"] |= {
    "reinit_blend": 0.8,
    "reinit_enc_dec_tranpose": True,
    "remove_parallel_grads": True,
    "normalize_w_dec": True,
}
OLD_SAEV = {
    "d_vit": DIM,
    "exp_factor": WIDTH / DIM,
    "n_reinit_samples": 9,
    "remove_parallel_grads": True,
    "normalize_w_dec": True,
    "seed": 0,
}
SAEV_1 = {"schema": 1, "cfg": OLD_SAEV | {"top_k": K}, "cls": "TopK", "commit": "c", "lib": "l"}
PRISMA = {
    "model_class_name": "HookedViT",
    "model_name": "m",
    "hook_point_layer": 9,
    "layer_subtype": "hook_resid_post",
    "hook_point_head_index": None,
    "context_size": 50,
    "d_in": DIM,
    "activation_fn_str": "topk",
    "activation_fn_kwargs": {"k": K},
    "cls_token_only": False,
    "initialization_method": "independent",
    "normalize_activations": "none",
    "architecture": "standard",
    "expansion_factor": WIDTH / DIM,
    "is_transcoder": False,
    "transcoder_with_skip_connection": True,
    "l1_coefficient": 2e-4,
    "_dtype": "float32",
}
SCALE = math.sqrt(DIM) / NORM
ON_THE_NORM = W.x * SCALE @ W.W_enc + W.b_enc
CHECKPOINTS = {
    "saelens-5": Checkpoint(SAELENS_5, saelens, decoded(top_k(PRE))),
    "saelens-6": Checkpoint(SAELENS_6, saelens, decoded(top_k(PRE))),
    "sparsify": Checkpoint(SPARSIFY, write_sparsify, decoded(top_k(PRE))),
    "sdxl-unbox": Checkpoint(
        SDXL_UNBOX, lambda path, said: write_sdxl_unbox(path / "s", **said), decoded(top_k(PRE))
    ),
    "sparsify-2024": Checkpoint(SPARSIFY_2024, write_sparsify, decoded(top_k(PRE))),
    "dictionary_learning": Checkpoint(
        DICTIONARY_LEARNING, dictionary_learning, decoded(PRE * (PRE > 0.8))
    ),
    "llamascopium": Checkpoint(
        LLAMASCOPIUM, write_llamascopium, decoded(top_k(ON_THE_NORM)) / SCALE
    ),
    "llamascopium-2025": Checkpoint(
        LLAMASCOPIUM_2025, write_llamascopium, decoded(top_k(ON_THE_NORM)) / SCALE
    ),
    "saev-5": Checkpoint(
        SAEV, lambda path, said: write_saev(path / "sae.pt", said), decoded(top_k(PRE_RAW))
    ),
    "saev-1": Checkpoint(
        SAEV_1, lambda path, said: write_saev(path / "sae.pt", said), decoded(top_k(PRE))
    ),
    "saev-0": Checkpoint(
        OLD_SAEV, lambda path, said: write_saev(path / "sae.pt", said), decoded(PRE.relu())
    ),
    "vit-prisma": Checkpoint(PRISMA, write_prisma, decoded(top_k(PRE))),
    "msae": Checkpoint(
        {"target_norm": 2.0, "scaling_factor": MSAE_SCALE},
        lambda path, said: write_msae(path / f"12_5_TopKReLU_{K}_False_False_0.0_a.pth", **said),
        decoded(top_k(MSAE_PRE)) / MSAE_SCALE + CENTER,
    ),
}
# Values that are no strange ones: they mean something else, which is what comes out.
MEANINGFUL = {
    ("apply_b_dec_to_input", False),
    ("rescale_acts_by_decoder_norm", True),
    ("transcode", True),
    ("use_decoder_bias", False),
    ("sparsity_include_decoder_norm", True),
    ("apply_decoder_bias_to_pre_encoder", True),
}


def places(settings: dict[str, Any], *within: str) -> Iterator[tuple[str, ...]]:
    """The path of every object among the settings."""
    yield within
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            yield from places(value, *within, key)


def changed(settings: dict[str, Any], place: tuple[str, ...], key: str, to: Any) -> dict[str, Any]:
    """The settings with another value at one place."""
    copied = deepcopy(settings)
    holder = copied
    for name in place:
        holder = holder[name]
    holder[key] = to
    return copied


def right(path: Path, expected: Tensor, ignored: tuple[str, ...] = ()) -> bool:
    """Whether the import reconstructs what is expected."""
    dictionary, _ = import_sae(path, ignored=ignored)
    return torch.allclose(reconstruct(dictionary, W.x), expected, atol=1e-5, rtol=1e-5)


def strange(checkpoint: Checkpoint) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Each setting in turn with each value that no library writes: (key, value, all settings)."""
    for place in places(checkpoint.settings):
        holder = checkpoint.settings
        for name in place:
            holder = holder[name]
        for key in holder:
            for value in STRANGE:
                yield key, value, changed(checkpoint.settings, place, key, value)

"""Import of checkpoints from libraries for language models: sparsify, dictionary_learning,
llamascopium."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.worlds.foreign import (
    DIM,
    LINEAR,
    MATRICES,
    NORM,
    SITE,
    K,
    W,
    check,
    top_k,
    vector,
    write_dictionary_learning,
    write_llamascopium,
    write_sparsify,
)
from vision_sae.dictionaries.interop.conversion import import_sae
from vision_sae.errors import CorruptArtifactError, InvalidInputError

PRE = (W.x - W.b_dec) @ W.W_enc + W.b_enc
PRE_RAW = W.x @ W.W_enc + W.b_enc
TOPK_COUNTERS = {"k": torch.tensor(K, dtype=torch.int32), "threshold": torch.tensor(-1.0)}


def test_sparsify_subtracts_b_dec(tmp_path: Path) -> None:
    check(write_sparsify(tmp_path, {}), W.x, top_k(PRE) @ W.W_dec + W.b_dec)


def test_sparsify_transcoder_does_not(tmp_path: Path) -> None:
    path = write_sparsify(tmp_path, {"transcode": True})
    check(path, W.x, top_k(PRE_RAW) @ W.W_dec + W.b_dec)


def test_sparsify_width_may_follow_from_the_expansion(tmp_path: Path) -> None:
    # 12 features of 5 dimensions are no whole multiple.
    with pytest.raises(CorruptArtifactError, match="expansion_factor is 2, .* 2.4"):
        import_sae(write_sparsify(tmp_path, {"num_latents": 0, "expansion_factor": 2}))


@pytest.mark.parametrize(
    "settings",
    [
        {"activation": "groupmax"},
        {"skip_connection": True},
        {"signed": True},
        {"embed_skip": True},
        {"gram_lookup": True},
    ],
    ids=str,
)
def test_sparsify_of_an_unknown_kind_is_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    ((key, value),) = settings.items()
    with pytest.raises(InvalidInputError, match=f"{key} {value!r}"):
        import_sae(write_sparsify(tmp_path, settings))


def test_sparsify_tensor_that_no_import_knows_is_refused(tmp_path: Path) -> None:
    path = write_sparsify(tmp_path, {}, W_skip=torch.eye(DIM))
    with pytest.raises(InvalidInputError, match="W_skip"):
        import_sae(path)


@pytest.mark.parametrize("key", ["d_in", "num_latents"])
def test_sparsify_of_other_sizes_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(CorruptArtifactError, match=key):
        import_sae(write_sparsify(tmp_path, {key: 99}))


def test_dictionary_learning_standard(tmp_path: Path) -> None:
    tensors = LINEAR | {"encoder.bias": W.b_enc, "bias": W.b_dec}
    path = write_dictionary_learning(tmp_path, "AutoEncoder", tensors)
    check(path, W.x, PRE.relu() @ W.W_dec + W.b_dec)


def test_dictionary_learning_april_update_encodes_x_itself(tmp_path: Path) -> None:
    tensors = LINEAR | {"encoder.bias": W.b_enc, "decoder.bias": W.b_dec}
    path = write_dictionary_learning(tmp_path, "AutoEncoderNew", tensors)
    check(path, W.x, PRE_RAW.relu() @ W.W_dec + W.b_dec)


@pytest.mark.parametrize("threshold", [-1.0, 0.8])
def test_dictionary_learning_topk_goes_by_k_whatever_its_threshold(
    tmp_path: Path, threshold: float
) -> None:
    tensors = LINEAR | TOPK_COUNTERS | {"threshold": torch.tensor(threshold)}
    tensors |= {"encoder.bias": W.b_enc, "b_dec": W.b_dec}
    path = write_dictionary_learning(tmp_path, "AutoEncoderTopK", tensors)
    check(path, W.x, top_k(PRE) @ W.W_dec + W.b_dec)


def test_dictionary_learning_batch_topk_goes_by_its_threshold(tmp_path: Path) -> None:
    tensors = LINEAR | TOPK_COUNTERS | {"threshold": torch.tensor(0.8)}
    tensors |= {"encoder.bias": W.b_enc, "b_dec": W.b_dec}
    path = write_dictionary_learning(tmp_path, "BatchTopKSAE", tensors)
    check(path, W.x, PRE * (PRE > 0.8) @ W.W_dec + W.b_dec)


def test_dictionary_learning_threshold_below_zero_was_never_set(tmp_path: Path) -> None:
    # Each row is a batch of its own then: k * 1 features fire in it.
    tensors = LINEAR | TOPK_COUNTERS | {"encoder.bias": W.b_enc, "b_dec": W.b_dec}
    path = write_dictionary_learning(tmp_path, "BatchTopKSAE", tensors)
    check(path, W.x, top_k(PRE) @ W.W_dec + W.b_dec)


def test_dictionary_learning_matryoshka(tmp_path: Path) -> None:
    tensors = MATRICES | TOPK_COUNTERS | {"threshold": torch.tensor(0.8)}
    tensors |= {"group_sizes": torch.tensor([4, 8])}
    path = write_dictionary_learning(tmp_path, "MatryoshkaBatchTopKSAE", tensors)
    check(path, W.x, PRE * (PRE > 0.8) @ W.W_dec + W.b_dec)


def test_dictionary_learning_jumprelu_encodes_x_itself(tmp_path: Path) -> None:
    threshold = vector().abs()
    tensors = MATRICES | {"threshold": threshold}
    path = write_dictionary_learning(tmp_path, "JumpReluAutoEncoder", tensors)
    check(path, W.x, PRE_RAW * (threshold < PRE_RAW) @ W.W_dec + W.b_dec)


def test_dictionary_learning_gated(tmp_path: Path) -> None:
    gate, r_mag, b_mag = vector(1), vector(2), vector(3)
    tensors = LINEAR | {"decoder_bias": W.b_dec, "gate_bias": gate, "r_mag": r_mag}
    path = write_dictionary_learning(tmp_path, "GatedAutoEncoder", tensors | {"mag_bias": b_mag})
    y = (W.x - W.b_dec) @ W.W_enc
    activations = (r_mag.exp() * y + b_mag).relu() * (y + gate > 0)
    check(path, W.x, activations @ W.W_dec + W.b_dec)


def test_dictionary_learning_class_that_is_unknown_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="'CrossCoder'.*AutoEncoderTopK"):
        import_sae(write_dictionary_learning(tmp_path, "CrossCoder", LINEAR))


@pytest.mark.parametrize("key", ["activation_dim", "dict_size"])
def test_dictionary_learning_of_other_sizes_is_refused(tmp_path: Path, key: str) -> None:
    tensors = LINEAR | {"encoder.bias": W.b_enc, "bias": W.b_dec}
    path = write_dictionary_learning(tmp_path, "AutoEncoder", tensors, **{key: 99})
    with pytest.raises(CorruptArtifactError, match=key):
        import_sae(path)


def test_dictionary_learning_of_two_different_k_is_refused(tmp_path: Path) -> None:
    tensors = LINEAR | TOPK_COUNTERS | {"encoder.bias": W.b_enc, "b_dec": W.b_dec}
    tensors |= {"k": torch.tensor(K + 1)}
    with pytest.raises(CorruptArtifactError, match="k is 4, its configuration says 3"):
        import_sae(write_dictionary_learning(tmp_path, "AutoEncoderTopK", tensors))


def test_dictionary_learning_transcoder_is_refused(tmp_path: Path) -> None:
    tensors = LINEAR | {"encoder.bias": W.b_enc, "bias": W.b_dec}
    path = write_dictionary_learning(tmp_path, "AutoEncoder", tensors)
    settings = json.loads((path / "config.json").read_text()) | {"buffer": {"io": "in_and_out"}}
    (path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(InvalidInputError, match="io 'in_and_out'"):
        import_sae(path)


SCALE = math.sqrt(DIM) / NORM


def scaled(scale: float = SCALE) -> Tensor:
    return W.x * scale @ W.W_enc + W.b_enc


def test_llamascopium_scales_inputs_to_the_norm_sqrt_d(tmp_path: Path) -> None:
    expected = (scaled().relu() @ W.W_dec + W.b_dec) / SCALE
    dictionary = check(write_llamascopium(tmp_path, {}), W.x, expected)
    assert torch.equal(dictionary.decoder, W.W_dec)


@pytest.mark.parametrize("key", ["d_model", "expansion_factor"])
def test_llamascopium_of_other_sizes_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(CorruptArtifactError, match=key):
        import_sae(write_llamascopium(tmp_path, {key: 99}))


def test_llamascopium_of_no_average_norm_is_refused(tmp_path: Path) -> None:
    norm = {f"dataset_average_activation_norm.{SITE}".replace(".", "__"): torch.tensor(0.0)}
    with pytest.raises(CorruptArtifactError, match="average activation norm is 0"):
        import_sae(write_llamascopium(tmp_path, {}, **norm))


def test_llamascopium_for_inference_is_scaled_already(tmp_path: Path) -> None:
    path = write_llamascopium(tmp_path, {"norm_activation": "inference"})
    check(path, W.x, scaled(1).relu() @ W.W_dec + W.b_dec)


def test_llamascopium_of_early_2025_may_subtract_its_decoder_bias(tmp_path: Path) -> None:
    path = write_llamascopium(tmp_path, {"apply_decoder_bias_to_pre_encoder": True})
    pre = (W.x * SCALE - W.b_dec) @ W.W_enc + W.b_enc
    check(path, W.x, (pre.relu() @ W.W_dec + W.b_dec) / SCALE)


def test_llamascopium_topk_competes_in_decoder_norms(tmp_path: Path) -> None:
    path = write_llamascopium(tmp_path, {"act_fn": "topk", "sparsity_include_decoder_norm": True})
    norms = W.W_dec.norm(dim=1)
    check(path, W.x, (top_k(scaled() * norms) / norms @ W.W_dec + W.b_dec) / SCALE)


def test_llamascopium_topk_without_them(tmp_path: Path) -> None:
    path = write_llamascopium(tmp_path, {"act_fn": "topk"})
    check(path, W.x, (top_k(scaled()) @ W.W_dec + W.b_dec) / SCALE)


@pytest.mark.parametrize("in_norms", [True, False])
def test_llamascopium_thresholds_scale_with_the_input(tmp_path: Path, in_norms: bool) -> None:
    threshold = vector().abs()
    settings = {"act_fn": "jumprelu", "sparsity_include_decoder_norm": in_norms}
    path = write_llamascopium(
        tmp_path, settings, activation_function__log_jumprelu_threshold=threshold.log()
    )
    competing = scaled() * W.W_dec.norm(dim=1) if in_norms else scaled()
    activations = scaled() * (competing > threshold)
    check(path, W.x, (activations @ W.W_dec + W.b_dec) / SCALE)


def test_llamascopium_thresholds_of_another_activation_are_refused(tmp_path: Path) -> None:
    path = write_llamascopium(tmp_path, {}, activation_function__log_jumprelu_threshold=vector())
    with pytest.raises(InvalidInputError, match="also holds .*log_jumprelu_threshold"):
        import_sae(path)


def test_llamascopium_without_a_decoder_bias(tmp_path: Path) -> None:
    path = write_llamascopium(tmp_path, {"use_decoder_bias": False})
    check(path, W.x, scaled().relu() @ W.W_dec / SCALE)


@pytest.mark.parametrize(
    "settings",
    [
        {"norm_activation": "token-wise"},
        {"act_fn": "batchtopk"},
        {"sae_type": "crosscoder"},
        {"use_glu_encoder": True},
        {"hook_point_out": "blocks.3.hook_mlp_out"},
        {"jump_relu_threshold": 0.1},
    ],
    ids=str,
)
def test_llamascopium_of_another_kind_is_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    ((key, value),) = settings.items()
    with pytest.raises(InvalidInputError, match=repr(value)) as raised:
        import_sae(write_llamascopium(tmp_path, settings))
    assert raised.value.field == key

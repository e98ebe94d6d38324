"""SAELens' layout, in both directions. Expected values follow its documented forward pass."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.worlds.foreign import DIM, WIDTH, K, W, check, reconstruct, top_k, vector, write_saelens
from vision_sae.dictionaries.interop.conversion import export_sae, import_sae
from vision_sae.dictionaries.kinds.batch_topk import BatchTopKSae
from vision_sae.dictionaries.kinds.gated import GatedSae
from vision_sae.dictionaries.kinds.jumprelu import JumpReluSae
from vision_sae.dictionaries.kinds.relu import ReluSae
from vision_sae.dictionaries.kinds.topk import TopKSae
from vision_sae.dictionaries.metrics import evaluate
from vision_sae.dictionaries.sae import Sae
from vision_sae.errors import AlreadyExistsError, CorruptArtifactError, InvalidInputError

PRE = (W.x - W.b_dec) @ W.W_enc + W.b_enc
PRE_RAW = W.x @ W.W_enc + W.b_enc


def test_standard_is_relu(tmp_path: Path) -> None:
    path = write_saelens(tmp_path / "sae", {"architecture": "standard"})
    assert check(path, W.x, PRE.relu() @ W.W_dec + W.b_dec).architecture == "relu"


def test_b_dec_that_is_not_applied_to_the_input_is_folded(tmp_path: Path) -> None:
    path = write_saelens(
        tmp_path / "sae", {"architecture": "standard", "apply_b_dec_to_input": False}
    )
    check(path, W.x, PRE_RAW.relu() @ W.W_dec + W.b_dec)


def test_topk(tmp_path: Path) -> None:
    path = write_saelens(tmp_path / "sae", {"architecture": "topk", "k": K})
    check(path, W.x, top_k(PRE) @ W.W_dec + W.b_dec)


def test_rescaling_by_decoder_norm_decides_who_is_among_the_k(tmp_path: Path) -> None:
    settings = {"architecture": "topk", "k": K, "rescale_acts_by_decoder_norm": True}
    norms = W.W_dec.norm(dim=1)
    expected = top_k(PRE * norms) / norms @ W.W_dec + W.b_dec
    sae = check(write_saelens(tmp_path / "sae", settings), W.x, expected)
    torch.testing.assert_close(sae.encode(W.x).values.sum(1), top_k(PRE * norms).sum(1))


def test_jumprelu_and_a_threshold_below_zero_is_zero(tmp_path: Path) -> None:
    threshold = vector()
    path = write_saelens(tmp_path / "sae", {"architecture": "jumprelu"}, threshold=threshold)
    sae = check(path, W.x, PRE.relu() * (threshold < PRE) @ W.W_dec + W.b_dec)
    assert isinstance(sae, JumpReluSae)
    assert torch.equal(sae.threshold, threshold.relu())


def test_setting_of_another_architecture_does_nothing(tmp_path: Path) -> None:
    threshold = vector().abs()
    settings = {"architecture": "jumprelu", "rescale_acts_by_decoder_norm": True}
    path = write_saelens(tmp_path / "sae", settings, threshold=threshold)
    check(path, W.x, PRE * (threshold < PRE) @ W.W_dec + W.b_dec)


@pytest.mark.parametrize("centred", [True, False])
def test_gated(tmp_path: Path, centred: bool) -> None:
    gate, r_mag, b_mag = vector(1), vector(2), vector(3)
    path = tmp_path / "sae"
    settings = {"architecture": "gated", "apply_b_dec_to_input": centred}
    write_saelens(path, settings, b_gate=gate, r_mag=r_mag, b_mag=b_mag)
    tensors = load_file(path / "sae_weights.safetensors")
    del tensors["b_enc"]
    save_file(tensors, path / "sae_weights.safetensors")
    y = W.x - W.b_dec if centred else W.x
    magnitude = (y @ (W.W_enc * r_mag.exp()) + b_mag).relu()
    check(path, W.x, magnitude * (y @ W.W_enc + gate > 0) @ W.W_dec + W.b_dec)


def test_version_5_names_topk_as_an_activation(tmp_path: Path) -> None:
    settings = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}}
    path = write_saelens(tmp_path / "sae", settings, scaling_factor=torch.ones(WIDTH))
    check(path, W.x, top_k(PRE) @ W.W_dec + W.b_dec)


@pytest.mark.parametrize(
    "settings",
    [
        {"normalize_activations": "layer_norm"},
        {"normalize_activations": "expected_average_only_in"},
        {"normalize_activations": True},
        {"architecture": "temporal"},
        {"activation_fn": "tanh-relu"},
        {"activation_fn_str": "tanh-relu"},
        {"sae_lens_version": "7.0.0"},
        {"hook_name_out": "blocks.1.hook_mlp_out"},
        {"use_error_term": True},
    ],
    ids=str,
)
def test_what_weights_cannot_express_is_refused_by_name(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    ((key, value),) = settings.items()
    with pytest.raises(InvalidInputError, match=str(value)) as raised:
        import_sae(write_saelens(tmp_path / "sae", settings))
    assert raised.value.field == key


@pytest.mark.parametrize(
    ("architecture", "activation"),
    [
        ("gated", "topk"),
        ("gated", "tanh-relu"),
        ("jumprelu", "topk"),
        ("jumprelu", "tanh-relu"),
        ("topk", "relu"),
    ],
)
def test_version_5_with_an_activation_that_its_architecture_cannot_have_here_is_refused(
    tmp_path: Path, architecture: str, activation: str
) -> None:
    settings = {"activation_fn_str": activation, "activation_fn_kwargs": {"k": K}}
    path = write_saelens(tmp_path / "sae", {"architecture": architecture} | settings)
    with pytest.raises(
        InvalidInputError, match=f"activation_fn_str '{activation}'.*{architecture}"
    ):
        import_sae(path)


def test_two_different_k_are_refused(tmp_path: Path) -> None:
    settings = {"architecture": "topk", "k": K + 1, "activation_fn_kwargs": {"k": K}}
    with pytest.raises(CorruptArtifactError, match="k is 4"):
        import_sae(write_saelens(tmp_path / "sae", settings))


@pytest.mark.parametrize("name", ["scaling_factor", "finetuning_scaling_factor"])
def test_finetuning_factors_multiply_what_is_decoded(tmp_path: Path, name: str) -> None:
    factors = vector()
    path = write_saelens(tmp_path / "sae", {"finetuning_scaling_factor": True}, **{name: factors})
    check(path, W.x, (PRE.relu() * factors) @ W.W_dec + W.b_dec)


def test_finetuning_factors_that_are_missing_are_named(tmp_path: Path) -> None:
    path = write_saelens(tmp_path / "sae", {"finetuning_scaling_factor": True})
    with pytest.raises(CorruptArtifactError, match="no tensor finetuning_scaling_factor"):
        import_sae(path)


def test_finetuning_factors_without_their_setting_are_refused(tmp_path: Path) -> None:
    path = write_saelens(tmp_path / "sae", {}, scaling_factor=vector())
    with pytest.raises(InvalidInputError, match="scaling_factor is not all 1"):
        import_sae(path)


@pytest.mark.parametrize("key", ["d_in", "d_sae"])
def test_configuration_of_other_sizes_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(CorruptArtifactError, match=key):
        import_sae(write_saelens(tmp_path / "sae", {key: 99}))


def test_k_beyond_the_features_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorruptArtifactError, match="k is 13, of 12 features"):
        import_sae(write_saelens(tmp_path / "sae", {"architecture": "topk", "k": WIDTH + 1}))


KEYWORDS = {"w_enc": W.W_enc.T.contiguous(), "b_enc": W.b_enc, "w_dec": W.W_dec, "b_dec": W.b_dec}
SAES: list[Sae] = [
    TopKSae(k=K, **KEYWORDS),
    ReluSae(**KEYWORDS),
    JumpReluSae(threshold=vector().abs(), **KEYWORDS),
    BatchTopKSae(k=K, threshold=torch.tensor(0.7), **KEYWORDS),
    GatedSae(r_mag=vector(2), b_mag=vector(3), **KEYWORDS),
]


@pytest.mark.parametrize("sae", SAES, ids=lambda sae: sae.architecture)
def test_exported_and_imported_again_reconstructs_the_same(tmp_path: Path, sae: Sae) -> None:
    export_sae(sae, tmp_path / "sae")
    again, _ = import_sae(tmp_path / "sae")
    assert torch.equal(reconstruct(again, W.x), reconstruct(sae, W.x))
    before, after = (evaluate(s, [W.x]).explained_variance for s in (sae, again))
    assert after == pytest.approx(before, abs=1e-5)


EXPECTED_TENSORS = {
    "topk": {"W_enc", "b_enc", "W_dec", "b_dec"},
    "standard": {"W_enc", "b_enc", "W_dec", "b_dec"},
    "jumprelu": {"W_enc", "b_enc", "W_dec", "b_dec", "threshold"},
    "gated": {"W_enc", "b_gate", "r_mag", "b_mag", "W_dec", "b_dec"},
}


@pytest.mark.parametrize("sae", SAES, ids=lambda sae: sae.architecture)
def test_export_has_the_tensors_that_version_6_loads_strictly(tmp_path: Path, sae: Sae) -> None:
    export_sae(sae, tmp_path / "sae")
    settings = json.loads((tmp_path / "sae/cfg.json").read_text())
    tensors = load_file(tmp_path / "sae/sae_weights.safetensors")
    assert set(tensors) == EXPECTED_TENSORS[settings["architecture"]]
    assert tensors["W_enc"].shape == (DIM, WIDTH)
    assert settings["apply_b_dec_to_input"] is True
    assert settings["metadata"]["sae_lens_version"] == "6.0.0"


def test_batch_topk_is_exported_as_jumprelu_of_one_threshold(tmp_path: Path) -> None:
    export_sae(SAES[3], tmp_path / "sae")
    threshold = load_file(tmp_path / "sae/sae_weights.safetensors")["threshold"]
    assert torch.equal(threshold, torch.full((WIDTH,), 0.7))


def test_metadata_is_kept(tmp_path: Path) -> None:
    export_sae(SAES[0], tmp_path / "sae", metadata={"hook_name": "blocks.10.update"})
    _, said = import_sae(tmp_path / "sae")
    assert said["metadata"]["hook_name"] == "blocks.10.update"


def test_export_never_replaces_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(AlreadyExistsError, match=r"holds mine\.txt"):
        export_sae(SAES[0], tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_dictionary_without_a_layout_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    class Odd(Sae):
        architecture = "odd"

    with pytest.raises(InvalidInputError, match="odd"):
        export_sae(Odd(**KEYWORDS), tmp_path / "sae")
    assert not list(tmp_path.iterdir())


def test_unknown_export_format_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="'onnx'.*saelens"):
        export_sae(SAES[0], tmp_path / "sae", "onnx")

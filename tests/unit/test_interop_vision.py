"""Import of checkpoints from libraries for vision: sdxl-unbox, saev, MSAE, ViT-Prisma."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.foreign import DIM, WIDTH, K, check, random_weights, top_k, vector
from vision_sae.dictionaries.batch_topk import BatchTopKSae
from vision_sae.dictionaries.interop.formats import import_sae
from vision_sae.errors import CorruptArtifactError, InvalidInputError

W = random_weights()
PRE = (W.x - W.b_dec) @ W.W_enc + W.b_enc
PRE_RAW = W.x @ W.W_enc + W.b_enc
MATRICES = {"W_enc": W.W_enc, "b_enc": W.b_enc, "W_dec": W.W_dec, "b_dec": W.b_dec}


def write_sdxl_unbox(path: Path, **settings: Any) -> Path:
    path.mkdir()
    said = {"n_dirs_local": WIDTH, "d_model": DIM, "k": K, "auxk": 4, "dead_steps_threshold": 9}
    (path / "config.json").write_text(json.dumps(said | settings))
    tensors = {
        "encoder.weight": W.W_enc.T,
        "decoder.weight": W.W_dec.T,
        "pre_bias": W.b_dec,
        "latent_bias": W.b_enc,
        "stats_last_nonzero": torch.zeros(WIDTH, dtype=torch.long),
    }
    torch.save({"state_dict": tensors}, path / "state_dict.pth")
    torch.save(vector(), path / "mean.pt")
    torch.save(vector(), path / "std.pt")
    return path


def test_sdxl_unbox_keeps_decoder_rows_as_they_are(tmp_path: Path) -> None:
    path = write_sdxl_unbox(tmp_path / "final")
    dictionary = check(path, W.x, top_k(PRE) @ W.W_dec + W.b_dec)
    assert torch.equal(dictionary.decoder, W.W_dec)


def test_sdxl_unbox_is_also_found_by_its_weights_file(tmp_path: Path) -> None:
    path = write_sdxl_unbox(tmp_path / "final") / "state_dict.pth"
    check(path, W.x, top_k(PRE) @ W.W_dec + W.b_dec)


@pytest.mark.parametrize("key", ["n_dirs_local", "d_model"])
def test_sdxl_unbox_of_other_sizes_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(CorruptArtifactError, match=key):
        import_sae(write_sdxl_unbox(tmp_path / "final", **{key: 99}))


def write_saev(path: Path, header: dict[str, Any], **tensors: Tensor) -> Path:
    with path.open("wb") as file:
        file.write(json.dumps(header).encode() + b"\n")
        torch.save(MATRICES | tensors, file)
    return path


def saev_header(schema: int, cls: str, **parameters: Any) -> dict[str, Any]:
    activation = {"cls": cls, "params": parameters}
    return {
        "schema": schema,
        "cfg": {"d_model": DIM, "d_sae": WIDTH, "activation": activation},
        "commit": "c0ffee",
        "lib": "0.3",
    }


def test_saev_with_a_schema_encodes_x_itself(tmp_path: Path) -> None:
    path = write_saev(tmp_path / "sae.pt", saev_header(5, "TopK", top_k=K))
    # Three positive pre-activations or more in every row: saev keeps negative ones of the k too.
    assert ((PRE_RAW > 0).sum(1) >= K).all()
    check(path, W.x, top_k(PRE_RAW) @ W.W_dec + W.b_dec)


def test_saev_without_a_schema_subtracts_b_dec(tmp_path: Path) -> None:
    header = {"d_vit": DIM, "exp_factor": 2, "sparsity_coeff": 4e-4, "ghost_grads": False}
    path = write_saev(tmp_path / "sae.pt", header)
    check(path, W.x, PRE.relu() @ W.W_dec + W.b_dec)


def test_saev_of_schema_1_may_name_its_activation_outside(tmp_path: Path) -> None:
    header = {"schema": 1, "cls": "TopK", "cfg": {"d_vit": DIM, "exp_factor": 2, "top_k": K}}
    path = write_saev(tmp_path / "sae.pt", header)
    check(path, W.x, top_k(PRE_RAW) @ W.W_dec + W.b_dec)


def test_saev_relu_is_found_in_a_directory(tmp_path: Path) -> None:
    write_saev(tmp_path / "sae.pt", saev_header(4, "Relu"))
    check(tmp_path, W.x, PRE_RAW.relu() @ W.W_dec + W.b_dec)


def test_saev_batch_topk_fires_above_its_threshold(tmp_path: Path) -> None:
    header = saev_header(5, "BatchTopK", top_k=K, momentum=0.1)
    threshold = torch.tensor(1.5)
    path = write_saev(tmp_path / "sae.pt", header, **{"activation.threshold": threshold})
    check(path, W.x, PRE_RAW * (PRE_RAW > 1.5) @ W.W_dec + W.b_dec)


def test_saev_batch_topk_fires_above_zero_when_its_threshold_is_below(tmp_path: Path) -> None:
    header = saev_header(5, "BatchTopK", top_k=K)
    path = write_saev(tmp_path / "sae.pt", header, **{"activation.threshold": torch.tensor(-2.0)})
    dictionary = check(path, W.x, PRE_RAW.relu() @ W.W_dec + W.b_dec)
    assert isinstance(dictionary, BatchTopKSae)
    assert dictionary.threshold == 0


def test_saev_batch_topk_without_a_threshold_chose_by_row(tmp_path: Path) -> None:
    path = write_saev(tmp_path / "sae.pt", saev_header(2, "BatchTopK", top_k=K))
    check(path, W.x, top_k(PRE_RAW) @ W.W_dec + W.b_dec)


@pytest.mark.parametrize(
    ("header", "names"),
    [(saev_header(6, "Relu"), "schema 6"), (saev_header(5, "Swish"), "'Swish'")],
    ids=["schema", "activation"],
)
def test_saev_of_an_unknown_kind_is_refused(
    tmp_path: Path, header: dict[str, Any], names: str
) -> None:
    with pytest.raises(InvalidInputError, match=names):
        import_sae(write_saev(tmp_path / "sae.pt", header))


def test_saev_header_of_other_sizes_is_refused(tmp_path: Path) -> None:
    header = saev_header(5, "Relu")
    header["cfg"]["d_model"] = DIM + 1
    with pytest.raises(CorruptArtifactError, match="d_model"):
        import_sae(write_saev(tmp_path / "sae.pt", header))


CENTER, SCALE = torch.arange(DIM) - 1.5, 0.25


def write_msae(path: Path, **changes: Any) -> Path:
    model = {
        "encoder": W.W_enc,
        "decoder": W.W_dec,
        "pre_bias": W.b_dec,
        "latent_bias": W.b_enc,
        "latents_activation_frequency": torch.zeros(WIDTH, dtype=torch.int64),
    }
    stored = {"model": model, "mean_center": CENTER, "scaling_factor": SCALE, "target_norm": None}
    torch.save(stored | changes, path)
    return path


def msae_pre(center: Tensor | float, scale: float) -> Tensor:
    return ((W.x - center) * scale - W.b_dec) @ W.W_enc + W.b_enc


def test_msae_centres_and_scales_its_input(tmp_path: Path) -> None:
    path = write_msae(tmp_path / f"12_5_TopKReLU_{K}_RW_False_False_0.0_cc3m_ViT-L~14.pth")
    activations = top_k(msae_pre(CENTER, SCALE))
    expected = (activations @ W.W_dec + W.b_dec) / SCALE + CENTER
    dictionary = check(path, W.x, expected)
    # Decoder rows stay; activations come in the units of x.
    assert torch.equal(dictionary.decoder, W.W_dec)
    torch.testing.assert_close(dictionary.encode(W.x).values.sum(1), activations.sum(1) / SCALE)


def test_msae_relu_with_tied_weights_and_a_centre_for_all(tmp_path: Path) -> None:
    path = write_msae(tmp_path / "12_5_ReLU_003_True_False_0.0_cc3m.pth", mean_center=0.5)
    expected = (msae_pre(0.5, SCALE).relu() @ W.W_enc.T + W.b_dec) / SCALE + 0.5
    check(path, W.x, expected)


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("12_5_BatchTopK_3_False_False_0.0_a.pth", "'BatchTopK'"),
        ("12_5_TopKabsReLU_3_False_False_0.0_a.pth", "'TopKabsReLU'"),
        ("12_5_TopKReLU_3_False_True_0.0_a.pth", "standardises each input"),
        ("12_5_TopKReLU_3_False_False_30.0_a.pth", "caps its activations"),
        ("renamed.pth", "must keep the name"),
    ],
    ids=["batch", "abs", "normalised", "capped", "renamed"],
)
def test_msae_that_weights_cannot_express_is_refused(tmp_path: Path, name: str, names: str) -> None:
    with pytest.raises(InvalidInputError, match=names):
        import_sae(write_msae(tmp_path / name))


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_msae_with_an_impossible_scale_is_refused(tmp_path: Path, scale: float) -> None:
    path = write_msae(tmp_path / "12_5_ReLU_003_False_False_0.0_a.pth", scaling_factor=scale)
    with pytest.raises(CorruptArtifactError, match="scaling_factor"):
        import_sae(path)


@pytest.mark.parametrize("k", [0, WIDTH + 1])
def test_msae_with_an_impossible_k_is_refused(tmp_path: Path, k: int) -> None:
    path = write_msae(tmp_path / f"12_5_TopKReLU_{k}_False_False_0.0_a.pth")
    with pytest.raises(CorruptArtifactError, match=f"k is {k}, of 12 features"):
        import_sae(path)


def write_prisma(path: Path, settings: dict[str, Any], **tensors: Tensor) -> Path:
    said = {"d_in": DIM, "d_sae": None, "normalize_activations": "none"}
    (path / "config.json").write_text(json.dumps(said | settings))
    torch.save(MATRICES | tensors, path / "weights.pt")
    return path


def test_prisma_relu_with_its_sibling_configuration(tmp_path: Path) -> None:
    path = write_prisma(tmp_path, {"activation_fn_str": "relu"}) / "weights.pt"
    check(path, W.x, PRE.relu() @ W.W_dec + W.b_dec)


def test_prisma_topk(tmp_path: Path) -> None:
    settings = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}}
    check(write_prisma(tmp_path, settings), W.x, top_k(PRE) @ W.W_dec + W.b_dec)


@pytest.mark.parametrize("key", ["d_in", "d_sae"])
def test_prisma_of_other_sizes_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(CorruptArtifactError, match=key):
        import_sae(write_prisma(tmp_path, {key: 99}))


def test_prisma_gated_takes_its_gates_bias(tmp_path: Path) -> None:
    gate, r_mag, b_mag = vector(1), vector(2), vector(3)
    path = write_prisma(tmp_path, {"architecture": "gated"}, b_gate=gate, r_mag=r_mag, b_mag=b_mag)
    y = W.x - W.b_dec
    magnitude = (y @ (W.W_enc * r_mag.exp()) + b_mag).relu()
    check(path, W.x, magnitude * (y @ W.W_enc + gate > 0) @ W.W_dec + W.b_dec)


@pytest.mark.parametrize(
    "settings",
    [
        {"normalize_activations": "layer_norm"},
        {"normalize_activations": "constant_norm_rescale"},
        {"activation_fn_str": "tanh-relu"},
        {"architecture": "transcoder"},
    ],
    ids=str,
)
def test_prisma_setting_that_weights_cannot_express_is_refused(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    ((key, value),) = settings.items()
    with pytest.raises(InvalidInputError, match=value) as raised:
        import_sae(write_prisma(tmp_path, settings))
    assert raised.value.field == key

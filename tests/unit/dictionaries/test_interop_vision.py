"""Import of checkpoints from libraries for vision: sdxl-unbox, saev, MSAE, ViT-Prisma."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.worlds.foreign import (
    CENTER,
    DIM,
    MSAE_SCALE,
    WIDTH,
    K,
    W,
    check,
    saev_header,
    top_k,
    vector,
    write_msae,
    write_prisma,
    write_saev,
    write_sdxl_unbox,
)
from vision_sae.dictionaries.interop.conversion import import_sae
from vision_sae.dictionaries.kinds.batch_topk import BatchTopKSae
from vision_sae.errors import CorruptArtifactError, InvalidInputError

PRE = (W.x - W.b_dec) @ W.W_enc + W.b_enc
PRE_RAW = W.x @ W.W_enc + W.b_enc


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


def test_saev_with_a_schema_encodes_x_itself(tmp_path: Path) -> None:
    path = write_saev(tmp_path / "sae.pt", saev_header(5, "TopK", top_k=K))
    # Three positive pre-activations or more in every row: saev keeps negative ones of the k too.
    assert ((PRE_RAW > 0).sum(1) >= K).all()
    check(path, W.x, top_k(PRE_RAW) @ W.W_dec + W.b_dec)


def test_saev_without_a_schema_subtracts_b_dec(tmp_path: Path) -> None:
    header = {"d_vit": DIM, "exp_factor": WIDTH / DIM, "seed": 0, "ghost_grads": False}
    path = write_saev(tmp_path / "sae.pt", header)
    check(path, W.x, PRE.relu() @ W.W_dec + W.b_dec)


@pytest.mark.parametrize(
    "header",
    [
        {"cls": "TopK", "cfg": {"d_vit": DIM, "exp_factor": WIDTH / DIM, "top_k": K}},
        saev_header(1, "TopK", top_k=K) | {"cls": "SparseAutoencoderConfig"},
    ],
    ids=["activation-outside", "activation-inside"],
)
def test_saev_of_schema_1_subtracts_b_dec(tmp_path: Path, header: dict[str, Any]) -> None:
    path = write_saev(tmp_path / "sae.pt", header | {"schema": 1})
    check(path, W.x, top_k(PRE) @ W.W_dec + W.b_dec)


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


@pytest.mark.parametrize("schema", [4, 5])
def test_saev_batch_topk_without_a_threshold_is_incomplete_since_schema_4(
    tmp_path: Path, schema: int
) -> None:
    path = write_saev(tmp_path / "sae.pt", saev_header(schema, "BatchTopK", top_k=K))
    with pytest.raises(CorruptArtifactError, match=r"no tensor activation\.threshold"):
        import_sae(path)


def test_saev_threshold_of_another_activation_is_refused(tmp_path: Path) -> None:
    threshold = {"activation.threshold": torch.tensor(1.5)}
    path = write_saev(tmp_path / "sae.pt", saev_header(5, "TopK", top_k=K), **threshold)
    with pytest.raises(InvalidInputError, match=r"also holds activation\.threshold"):
        import_sae(path)


def test_saev_without_a_schema_has_no_activation(tmp_path: Path) -> None:
    header = {"d_vit": DIM, "activation": {"cls": "TopK", "params": {"top_k": K}}}
    with pytest.raises(InvalidInputError, match="no import knows the setting activation"):
        import_sae(write_saev(tmp_path / "sae.pt", header))


@pytest.mark.parametrize(
    ("header", "names"),
    [
        (saev_header(6, "Relu"), "schema 6"),
        (saev_header(5, "Relu") | {"schema": None}, "schema None"),
        (saev_header(5, "Swish"), "'Swish'"),
        (saev_header(1, "BatchTopK", top_k=K), "'BatchTopK'.*a whole batch"),
    ],
    ids=["schema", "null", "activation", "batch"],
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


def msae_pre(center: Tensor | float, scale: float) -> Tensor:
    return ((W.x - center) * scale - W.b_dec) @ W.W_enc + W.b_enc


def test_msae_centres_and_scales_its_input(tmp_path: Path) -> None:
    path = write_msae(tmp_path / f"12_5_TopKReLU_{K}_RW_False_False_0.0_cc3m_ViT-L~14.pth")
    activations = top_k(msae_pre(CENTER, MSAE_SCALE))
    expected = (activations @ W.W_dec + W.b_dec) / MSAE_SCALE + CENTER
    dictionary = check(path, W.x, expected)
    # Decoder rows stay; activations come in the units of x.
    assert torch.equal(dictionary.decoder, W.W_dec)
    torch.testing.assert_close(
        dictionary.encode(W.x).values.sum(1), activations.sum(1) / MSAE_SCALE
    )


@pytest.mark.parametrize("kind", ["float64", "float32", "int64", ">f8"])
def test_msae_may_hold_numbers_of_numpy(tmp_path: Path, kind: str) -> None:
    # Its train.py writes the target norm, sqrt(D), as NumPy gives it.
    number = np.array(2).astype(kind)[()]
    name = "12_5_ReLU_003_False_False_0.0_a.pth"
    path = write_msae(tmp_path / name, target_norm=number, scaling_factor=number)
    check(path, W.x, (msae_pre(CENTER, 2).relu() @ W.W_dec + W.b_dec) / 2 + CENTER)


@pytest.mark.parametrize("value", [np.array([1.0]), np.str_("x"), np.complex128(1)], ids=repr)
def test_msae_with_other_values_of_numpy_is_refused(tmp_path: Path, value: Any) -> None:
    path = write_msae(tmp_path / "12_5_ReLU_003_False_False_0.0_a.pth", target_norm=value)
    with pytest.raises(InvalidInputError, match="not a file of plain tensors"):
        import_sae(path)


def test_msae_relu_with_tied_weights_and_a_centre_for_all(tmp_path: Path) -> None:
    path = write_msae(tmp_path / "12_5_ReLU_003_True_False_0.0_cc3m.pth", mean_center=0.5)
    expected = (msae_pre(0.5, MSAE_SCALE).relu() @ W.W_enc.T + W.b_dec) / MSAE_SCALE + 0.5
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
        {"is_transcoder": True},
    ],
    ids=str,
)
def test_prisma_setting_that_weights_cannot_express_is_refused(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    ((key, value),) = settings.items()
    with pytest.raises(InvalidInputError, match=f"{key} {value!r}") as raised:
        import_sae(write_prisma(tmp_path, settings))
    assert raised.value.field == key


def test_prisma_gated_with_topk_is_refused(tmp_path: Path) -> None:
    settings = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}}
    path = write_prisma(tmp_path, {"architecture": "gated"} | settings, b_gate=vector())
    with pytest.raises(InvalidInputError, match="activation_fn_str 'topk'.*only 'relu'"):
        import_sae(path)


def test_prisma_that_does_not_say_how_it_normalises_is_refused(tmp_path: Path) -> None:
    path = write_prisma(tmp_path, {})
    (path / "config.json").write_text("{}")
    with pytest.raises(CorruptArtifactError, match="takes for layer_norm"):
        import_sae(path)


def test_prisma_arguments_of_an_unnamed_activation_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CorruptArtifactError, match="no text activation_fn_str"):
        import_sae(write_prisma(tmp_path, {"activation_fn_kwargs": {"k": K}}))

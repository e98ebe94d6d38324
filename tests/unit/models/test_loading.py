from __future__ import annotations

from pathlib import Path
from typing import Any

import protovalidate
import pytest
import timm
import torch
from timm.models import save_for_hf
from torch import nn
from torchvision import models

from vision_sae import devices
from vision_sae.errors import InvalidInputError, NotFoundError
from vision_sae.models.from_timm import timm_preprocessing
from vision_sae.models.grid import Preprocessing
from vision_sae.models.loading import load_generator, load_model
from vision_sae.models.names import shown_name
from vision_sae.resources import model_resource
from vision_sae.v1.catalog_service_pb2 import GetModelRequest

SIZES = {"img_size": 32, "depth": 2, "embed_dim": 32, "num_heads": 2, "num_classes": 3}


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, nn.Module]:
    """A tiny timm ViT in the layout of its hub, and the module itself."""
    torch.manual_seed(0)
    module = timm.create_model("vit_tiny_patch16_224", **SIZES).eval()
    nn.init.normal_(module.head.weight)
    save_for_hf(module, tmp_path, model_args=SIZES, safe_serialization=True)
    return tmp_path, module


@pytest.mark.parametrize("prefix", ["", "local-dir:"])
def test_saved_model_comes_back_with_equal_outputs(
    saved: tuple[Path, nn.Module], prefix: str
) -> None:
    path, module = saved
    model = load_model(f"{prefix}{path}", dtype="float32")
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(model.forward(images).logits, module(images))


def test_local_model_brings_its_preprocessing(saved: tuple[Path, nn.Module]) -> None:
    half = (0.5, 0.5, 0.5)  # what the augreg ViTs were trained with
    expected = Preprocessing(32, 32, crop_pct=0.9, interpolation="bicubic", mean=half, std=half)
    assert load_model(str(saved[0]), dtype="float32").preprocessing == expected


def test_model_keeps_the_name_it_was_asked_by(saved: tuple[Path, nn.Module]) -> None:
    assert load_model(f"local-dir:{saved[0]}", dtype="float32").name == f"local-dir:{saved[0]}"


@pytest.mark.parametrize("prefix", ["", "timm:"])
def test_plain_names_reach_timm_with_pretrained_weights(
    monkeypatch: pytest.MonkeyPatch, prefix: str
) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []
    create = timm.create_model

    def record(name: str, **options: Any) -> nn.Module:
        asked.append((name, options))
        return create(name, pretrained=False, **SIZES | {"img_size": 224, "num_classes": 1000})

    monkeypatch.setattr(timm, "create_model", record)
    load_model(f"{prefix}vit_tiny_patch16_224", dtype="float32")
    # First without weights: its architecture may be unfit.
    assert asked == [("vit_tiny_patch16_224", {"pretrained": loaded}) for loaded in (False, True)]


def test_torchvision_names_reach_torchvision_with_default_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tiny = {"image_size": 224, "patch_size": 32, "num_layers": 1, "num_heads": 1}
    asked: list[tuple[str, Any]] = []

    def record(name: str, *, weights: Any) -> nn.Module:
        asked.append((name, weights))
        return models.VisionTransformer(**tiny, hidden_dim=8, mlp_dim=8)

    monkeypatch.setattr(models, "get_model", record)
    model = load_model("torchvision:vit_b_16", dtype="float32")
    assert asked == [("vit_b_16", models.ViT_B_16_Weights.IMAGENET1K_V1)]
    assert (model.preprocessing.height, model.preprocessing.crop_pct) == (224, 224 / 256)


@pytest.mark.parametrize("name", ["no_such_model", "no/such/path", "unknown-scheme:x"])
def test_unknown_name_is_refused_with_the_ways_out(name: str) -> None:
    with pytest.raises(NotFoundError, match=r"demo:dinov2-s.*torchvision:NAME.*directory"):
        load_model(name)


@pytest.mark.parametrize("name", ["timm:no_such_model", "torchvision:no_such_model", "demo:x"])
def test_unknown_name_of_a_known_library_is_not_found(name: str) -> None:
    with pytest.raises(NotFoundError):
        load_model(name)


def test_directory_without_a_model_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"config\.json"):
        load_model(str(tmp_path))


def test_unsupported_crop_mode_is_refused() -> None:
    config = {"crop_mode": "border", "input_size": (3, 32, 32)}
    with pytest.raises(InvalidInputError, match="border"):
        timm_preprocessing(config)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("demo:clip", "demo:clip"),
        ("vit_tiny_patch16_224", "vit_tiny_patch16_224"),
        ("timm:hf_hub:org/vit", "timm:hf_hub:org/vit"),
        ("hf-hub:org/clip", "hf-hub:org/clip"),
        ("open_clip:ViT-B-32/laion2b_s34b_b79k", "open_clip:ViT-B-32/laion2b_s34b_b79k"),
        ("sdxl:stabilityai/sdxl-turbo", "sdxl:stabilityai/sdxl-turbo"),
        ("captions", "captions"),
        ("", ""),
        ("/data/ada/a:b/vit", "vit"),
        ("../models/vit/", "vit"),
        ("local-dir:models/vit", "local-dir:vit"),
        ("timm:local-dir:/data/ada/vit", "timm:local-dir:vit"),
        ("open_clip-dir:/data/ada/clip", "open_clip-dir:clip"),
        ("open_clip:ViT-B-32//data/ada/weights.pt", "open_clip:ViT-B-32/weights.pt"),
        ("sdxl:/data/ada/turbo", "sdxl:turbo"),
        ("sdxl:data/ada/turbo", "sdxl:turbo"),
    ],
)
def test_a_name_that_is_shown_holds_no_path(name: str, shown: str) -> None:
    assert shown_name(name) == shown


def test_a_folder_that_looks_like_a_name_of_a_hub_is_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ada-private" / "turbo").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert shown_name("sdxl:ada-private/turbo") == "sdxl:turbo"


@pytest.mark.parametrize(
    ("name", "resource"),
    [
        ("demo:clip", "models/demo-clip"),
        ("./models/vit", "models/models-vit"),
        ("../vit", "models/vit"),
        ("_/x", "models/x"),
        ("é", "models/model"),
        ("a" * 200, "models/" + "a" * 128),
    ],
)
def test_a_resource_name_is_one_that_the_contract_takes(name: str, resource: str) -> None:
    assert model_resource(name) == resource
    request = GetModelRequest(name=resource)
    protovalidate.validate(request)


@pytest.mark.parametrize("load", [load_model, load_generator])
@pytest.mark.parametrize("name", ["x" * 300, "sdxl:" + "a/" * 3000, "local-dir:" + "é" * 200])
def test_a_name_that_no_file_can_have_is_not_found(load: Any, name: str) -> None:
    with pytest.raises(NotFoundError, match="letters") as caught:
        load(name)
    assert len(str(caught.value)) < 200


def test_a_model_goes_where_the_setting_says_and_computes_in_its_precision(
    saved: tuple[Path, nn.Module],
) -> None:
    with devices.using("cpu", "bfloat16"):
        assert load_model(str(saved[0])).dtype == torch.bfloat16
        assert load_model(str(saved[0]), dtype="float32").dtype == torch.float32
        assert load_model(str(saved[0])).device == torch.device("cpu")


def test_families_get_a_device_that_is_there(
    saved: tuple[Path, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []

    def chosen(device: str, *, needed: int) -> str:
        asked.append((device, needed))
        return "cpu"

    monkeypatch.setattr(devices, "chosen", chosen)
    weights = sum(file.stat().st_size for file in saved[0].glob("*.safetensors"))
    assert load_model(str(saved[0]), device="cuda:1").device == torch.device("cpu")
    assert asked == [("cuda:1", 2 * weights)]


def test_a_cpu_refuses_float16(saved: tuple[Path, nn.Module]) -> None:
    with pytest.raises(InvalidInputError, match="does not compute in float16") as caught:
        load_model(str(saved[0]), dtype="float16", device="cpu")
    assert caught.value.field == "dtype"

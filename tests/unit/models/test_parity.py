"""A model that does otherwise than its own library is not loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from PIL import Image, ImageOps
from safetensors.torch import save_file

from tests.worlds.tiny import tiny_model, tiny_vit
from vision_sae.errors import InvalidInputError
from vision_sae.models.grid import PatchGrid, Preprocessing
from vision_sae.models.loading import load_model
from vision_sae.models.parity import check_parity
from vision_sae.models.vit import TimmBackbone, VitModel

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}


def saved(
    folder: Path,
    arch: str = "vit_tiny_patch16_224",
    size: tuple[int, int] = (32, 32),
    data: dict[str, Any] | None = None,
    **options: Any,
) -> str:
    """A folder with a timm model of random weights, whose data configuration says ``size``."""
    torch.manual_seed(0)
    options = SIZES | {"num_classes": 5} | options
    module = timm.create_model(arch, pretrained=False, **options)
    save_file(module.state_dict(), folder / "model.safetensors")
    trained = {
        "input_size": [options.get("in_chans", 3), *size],
        "num_classes": options["num_classes"],
    }
    config = {"architecture": arch, "model_args": options, "pretrained_cfg": trained | (data or {})}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


GRIDS: dict[str, tuple[dict[str, Any], PatchGrid]] = {
    "dynamic": ({"dynamic_img_size": True, "size": (48, 48)}, PatchGrid(6, 6, 1, 8, 8)),
    "dynamic, wide": ({"dynamic_img_size": True, "size": (40, 56)}, PatchGrid(5, 7, 1, 8, 8)),
    "patches dropped in training": ({"patch_drop_rate": 0.5}, PatchGrid(4, 4, 1, 8, 8)),
    "registers alone": (
        {"class_token": False, "reg_tokens": 3, "global_pool": "avg"},
        PatchGrid(4, 4, 3, 8, 8),
    ),
    "normed before": ({"pre_norm": True}, PatchGrid(4, 4, 1, 8, 8)),
    "no classifier": ({"num_classes": 0}, PatchGrid(4, 4, 1, 8, 8)),
    "distilled": ({"arch": "deit_tiny_distilled_patch16_224"}, PatchGrid(4, 4, 2, 8, 8)),
    "beit": ({"arch": "beit_base_patch16_224"}, PatchGrid(4, 4, 1, 8, 8)),
    "eva": ({"arch": "eva02_tiny_patch14_224"}, PatchGrid(4, 4, 1, 8, 8)),
    "dinov3": ({"arch": "vit_small_patch16_dinov3"}, PatchGrid(4, 4, 5, 8, 8)),
    "relative": ({"arch": "vit_relpos_small_patch16_224"}, PatchGrid(4, 4, 0, 8, 8)),
    # A ResNet that halves twice, then patches of 2 x 2 of its maps.
    "behind a ResNet": (
        {"arch": "vit_tiny_r_s16_p8_224", "img_size": 64, "patch_size": 2, "size": (64, 64)},
        PatchGrid(8, 8, 1, 8, 8),
    ),
}


@pytest.mark.parametrize("case", GRIDS)
def test_what_agrees_with_timm_is_loaded_with_its_grid(case: str, tmp_path: Path) -> None:
    options, grid = GRIDS[case]
    model = load_model(saved(tmp_path, **options), dtype="float32")
    images = torch.zeros(2, 3, model.preprocessing.height, model.preprocessing.width)
    with torch.inference_mode(), model.capture(["blocks.1.update"]) as captured:
        embedding = model.forward(images).embedding
    assert model.grid == grid
    assert captured["blocks.1.update"].shape == (2, grid.special + grid.patches, 32)
    assert embedding.shape == (2, 32)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no pooling": ({"global_pool": ""}, r"embedding .* 1 x 17 x 32, no vector"),
    "another size": ({"size": (48, 48)}, r"no picture of 3 x 48 x 48 .*Input height \(48\)"),
    "padded": (
        {"dynamic_img_size": True, "dynamic_img_pad": True, "size": (45, 50)},
        "48 x 56 of 45 x 50 pixels",
    ),
    "one channel": ({"in_chans": 1}, "1 channels"),
    "random interpolation": ({"data": {"interpolation": "random"}}, "random"),
    "no spread": ({"data": {"std": [0.0, 0.0, 0.0]}}, "std"),
    "other classes": ({"data": {"num_classes": 7, "classifier": "head"}}, "5 classes.*7"),
    "parallel blocks": ({"arch": "vit_small_patch16_18x2_224"}, "VisionTransformer is not a plain"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_is_refused_with_the_reason(case: str, tmp_path: Path) -> None:
    options, reason = REFUSED[case]
    with pytest.raises(InvalidInputError, match=reason) as caught:
        load_model(saved(tmp_path, **options), dtype="float32")
    assert caught.value.field == "model"


@pytest.mark.parametrize(
    ("arch", "options", "given"),
    [
        ("cait_xxs24_224", {"depth": 2}, "1, 196, 192"),  # a class token behind the blocks
        ("convit_tiny", {"depth": 3, "local_up_to_layer": 2}, "1, 196, 192"),
        ("samvit_base_patch16_224", {"depth": 2, "embed_dim": 64, "num_heads": 2}, "1, 14, 14, 64"),
    ],
)
def test_blocks_that_lack_a_token_or_keep_maps_are_refused(
    arch: str, options: dict[str, Any], given: str
) -> None:
    module = timm.create_model(arch, pretrained=False, **options)
    with pytest.raises(InvalidInputError, match=given):
        TimmBackbone(module)


@pytest.mark.parametrize("how", ["max", "avgmax"])
def test_tokens_are_pooled_by_their_maximum_where_the_model_does(how: str) -> None:
    model = tiny_model(global_pool=how)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode(), model.capture(["blocks.2.resid"]) as captured:
        logits = model.forward(images).logits
    found = model.classify(captured["blocks.2.resid"][:, 1:])
    assert found is not None
    assert logits is not None
    torch.testing.assert_close(found, logits)


def test_a_grid_that_is_transposed_is_refused() -> None:
    backbone = TimmBackbone(tiny_vit(img_size=(32, 64)))
    backbone.grid = PatchGrid(8, 4, 1, 4, 16)  # as many patches, on the same pixels
    model = VitModel("tiny", backbone, Preprocessing(32, 64), dtype="float32")
    with pytest.raises(InvalidInputError, match="patch in row 2 and column 2"):
        check_parity(model, backbone.module)


def test_another_result_than_the_librarys_is_refused() -> None:
    model = tiny_model()
    with pytest.raises(InvalidInputError, match="another result"):
        check_parity(model, lambda images: model.backbone.module(images) + 1e-6)


def test_weights_that_are_no_numbers_are_refused() -> None:
    model = tiny_model()
    model.backbone.module.state_dict()["norm.weight"][0] = torch.nan
    with pytest.raises(InvalidInputError, match="not finite"):
        check_parity(model, model.backbone.module)


def test_another_preprocessing_than_the_librarys_is_refused() -> None:
    model = tiny_model()

    def mirrored(picture: Image.Image) -> torch.Tensor:
        return model.preprocess(ImageOps.mirror(picture))

    check_parity(model, model.backbone.module, model.preprocess)
    with pytest.raises(InvalidInputError, match="another input of a picture"):
        check_parity(model, model.backbone.module, mirrored)


def test_the_check_leaves_random_numbers_hooks_and_weights_as_they_were() -> None:
    model = tiny_model()
    module = model.backbone.module

    def state() -> tuple[Any, ...]:
        hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in module.modules()]
        return torch.get_rng_state().tolist(), hooks, module.training

    before, weights = state(), model.weights_sha256
    check_parity(model, module, model.preprocess)
    assert state() == before
    assert tiny_model().weights_sha256 == weights


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("timm:cait_xxs24_224", "Cait"),
        ("timm:resnet18", "ResNet"),
        ("torchvision:resnet18", "vit_b_16"),
        ("open_clip:RN50/openai", "ModifiedResNet"),
        ("open_clip:convnext_base", "ConvNeXt"),
        ("open_clip:coca_ViT-B-32", "several queries"),
    ],
)
def test_that_a_model_is_no_plain_vit_is_known_before_its_weights(
    monkeypatch: pytest.MonkeyPatch, name: str, said: str
) -> None:
    create = timm.create_model

    def without(arch: str, *, pretrained: bool = False, **options: Any) -> Any:
        assert not pretrained
        return create(arch, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", without)
    monkeypatch.delattr(open_clip, "create_model")
    with pytest.raises(Exception, match=said) as caught:
        load_model(name)
    assert getattr(caught.value, "field", "") == "model"

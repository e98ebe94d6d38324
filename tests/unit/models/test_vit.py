"""The Model protocol over vision transformers of timm and torchvision, with random weights."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from timm.layers import SwiGLU
from timm.models.vision_transformer import ParallelScalingBlock
from torch import nn
from torchvision.models import VisionTransformer as TorchvisionVit

from tests.worlds.tiny import tiny_model, tiny_vit
from vision_sae.errors import InvalidInputError, NotFoundError
from vision_sae.models.grid import PatchGrid, Preprocessing
from vision_sae.models.protocol import Model
from vision_sae.models.vit import TimmBackbone, TorchvisionBackbone, VitModel


def images(model: VitModel, count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (count, 3, model.preprocessing.height, model.preprocessing.width)
    return torch.randn(shape, generator=generator)


def torchvision_model() -> VitModel:
    torch.manual_seed(0)
    module = TorchvisionVit(
        image_size=32,
        patch_size=8,
        num_layers=2,
        num_heads=2,
        hidden_dim=16,
        mlp_dim=24,
        num_classes=5,
    )
    nn.init.normal_(module.heads.head.weight)
    backbone = TorchvisionBackbone(module)
    return VitModel("tiny", backbone, Preprocessing(height=32, width=32), dtype="float32")


VARIANTS = {
    "cls": {},
    "registers": {"reg_tokens": 4},
    "no_cls": {"class_token": False, "global_pool": "avg"},
    "wide": {"img_size": (32, 64)},
    "tall_patches": {"patch_size": (16, 8)},
    "no_head": {"num_classes": 0},
    "swiglu": {"mlp_layer": SwiGLU},
    "fc_norm": {"global_pool": "avg", "fc_norm": True},
}
GRIDS = {
    "cls": PatchGrid(4, 4, 1, 8, 8),
    "registers": PatchGrid(4, 4, 5, 8, 8),
    "no_cls": PatchGrid(4, 4, 0, 8, 8),
    "wide": PatchGrid(4, 8, 1, 8, 8),
    "tall_patches": PatchGrid(2, 4, 1, 16, 8),
}


def test_vit_is_a_model() -> None:
    assert isinstance(tiny_model(), Model)


@pytest.mark.parametrize("variant", GRIDS)
def test_grid_knows_special_tokens_and_shape(variant: str) -> None:
    assert tiny_model(**VARIANTS[variant]).grid == GRIDS[variant]


@pytest.mark.parametrize(
    ("variant", "names"),
    [
        ({}, ["cls"]),
        ({"reg_tokens": 2}, ["cls", "register_0", "register_1"]),
        ({"class_token": False, "global_pool": "avg"}, []),
        ({"class_token": False, "reg_tokens": 1, "global_pool": "avg"}, ["register_0"]),
    ],
)
def test_special_tokens_have_names(variant: dict[str, Any], names: list[str]) -> None:
    assert list(tiny_model(**variant).special_tokens) == names


def test_a_distilled_deit_says_the_mean_of_its_heads() -> None:
    from timm.models.deit import VisionTransformerDistilled

    torch.manual_seed(0)
    module = VisionTransformerDistilled(
        img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=10
    )
    model = VitModel("deit", TimmBackbone(module), Preprocessing(32, 32), dtype="float32")
    x = images(model)
    with torch.inference_mode():
        tokens, found = module.forward_features(x), model.forward(x)
    assert model.special_tokens == ("cls", "distillation")
    assert found.logits is not None
    expected = (module.head(tokens[:, 0]) + module.head_dist(tokens[:, 1])) / 2
    torch.testing.assert_close(found.logits, expected)


def test_tokens_are_classified_as_the_model_pools() -> None:
    model = tiny_model(global_pool="map")
    with torch.inference_mode():
        last = [site for site in model.sites if site.endswith(".resid")][-1]
        with model.capture([last]) as captured:
            whole = model.forward(images(model)).logits
        found = model.classify(captured[last][:, model.grid.special :])
    assert whole is not None
    assert found is not None
    torch.testing.assert_close(found, whole)


@pytest.mark.parametrize("variant", VARIANTS)
def test_captured_tokens_are_the_special_ones_and_the_patches(variant: str) -> None:
    model = tiny_model(**VARIANTS[variant])
    with torch.inference_mode(), model.capture(["blocks.1.update"]) as captured:
        model.forward(images(model))
    assert captured["blocks.1.update"].shape == (2, model.grid.special + model.grid.patches, 32)


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_the_plain_module(variant: str) -> None:
    model = tiny_model(**VARIANTS[variant])
    with torch.inference_mode():
        out, plain = model.forward(images(model)), model.backbone.module(images(model))
    head = out.embedding if out.logits is None else out.logits
    torch.testing.assert_close(head, plain)


def test_model_without_a_head_has_no_logits() -> None:
    model = tiny_model(num_classes=0)
    with torch.inference_mode():
        assert model.forward(images(model)).logits is None


def test_update_is_the_output_of_a_block_minus_its_input() -> None:
    model, module = tiny_model(), tiny_vit()  # the same weights, without any hook
    x = images(model)
    with torch.inference_mode():
        tokens = module.norm_pre(module.patch_drop(module._pos_embed(module.patch_embed(x))))
        before = module.blocks[0](tokens)
        after = module.blocks[1](before)
        with model.capture(["blocks.1.update", "blocks.1.resid"]) as captured:
            model.forward(x)
    assert torch.equal(captured["blocks.1.update"], after - before)
    assert torch.equal(captured["blocks.1.resid"], after)


def test_attn_is_the_output_of_attention_and_mlp_the_neurons_after_the_gelu() -> None:
    model, module = tiny_model(), tiny_vit()
    x = images(model)
    with torch.inference_mode():
        block = module.blocks[0]
        tokens = module._pos_embed(module.patch_embed(x))
        attn = block.attn(block.norm1(tokens))
        neurons = torch.nn.functional.gelu(block.mlp.fc1(block.norm2(tokens + attn)))
        with model.capture(["blocks.0.attn", "blocks.0.mlp"]) as captured:
            model.forward(x)
    torch.testing.assert_close(captured["blocks.0.attn"], attn)
    torch.testing.assert_close(captured["blocks.0.mlp"], neurons)


def test_mlp_of_swiglu_is_taken_after_gating() -> None:
    model, module = tiny_model(mlp_layer=SwiGLU), tiny_vit(mlp_layer=SwiGLU)
    x = images(model)
    with torch.inference_mode():
        block = module.blocks[0]
        tokens = module._pos_embed(module.patch_embed(x))
        h = block.norm2(tokens + block.attn(block.norm1(tokens)))
        gated = torch.nn.functional.gelu(block.mlp.fc1_g(h)) * block.mlp.fc1_x(h)
        with model.capture(["blocks.0.mlp"]) as captured:
            model.forward(x)
    torch.testing.assert_close(captured["blocks.0.mlp"], gated)


@pytest.mark.parametrize("make", [tiny_model, torchvision_model])
def test_declared_dims_are_those_captured(make: object) -> None:
    model = make()  # type: ignore[operator]
    with torch.inference_mode(), model.capture(list(model.sites)) as captured:
        model.forward(images(model))
    assert {s: v.shape[-1] for s, v in captured.items()} == {
        s: site.dim for s, site in model.sites.items()
    }


@pytest.mark.parametrize("make", [tiny_model, torchvision_model])
def test_sites_come_in_the_order_of_computation(make: object) -> None:
    model = make()  # type: ignore[operator]
    with torch.inference_mode(), model.capture(list(model.sites)) as captured:
        model.forward(images(model))
    assert list(captured) == list(model.sites)


def test_stop_computes_no_later_block() -> None:
    model = tiny_model()
    computed: list[int] = []
    for index, (block, _, _) in enumerate(model.backbone.blocks()):
        block.register_forward_hook(lambda *_args, index=index: computed.append(index))
    with torch.inference_mode(), model.capture(["blocks.0.mlp", "blocks.1.attn"], stop=True):
        model.forward(images(model))
    assert computed == [0]


@pytest.mark.parametrize("kind", ["update", "resid", "mlp", "attn"])
@pytest.mark.parametrize("make", [tiny_model, torchvision_model])
def test_replacing_by_itself_is_bit_identical(make: object, kind: str) -> None:
    model = make()  # type: ignore[operator]
    with torch.inference_mode():
        plain = model.forward(images(model)).embedding
        with model.replace(f"blocks.1.{kind}", lambda x: x):
            same = model.forward(images(model)).embedding
    assert torch.equal(same, plain)


def test_update_of_zeros_removes_the_block() -> None:
    model, without = tiny_model(), tiny_model()
    blocks = without.backbone.module.blocks
    without.backbone.module.blocks = nn.Sequential(blocks[0], blocks[2])
    with torch.inference_mode():
        expected = without.forward(images(without)).embedding
        with model.replace("blocks.1.update", torch.zeros_like):
            ablated = model.forward(images(model)).embedding
    torch.testing.assert_close(ablated, expected, rtol=1e-5, atol=1e-5)


def test_replacing_mlp_neurons_by_zeros_leaves_only_the_bias() -> None:
    model = tiny_model()
    fc2 = model.backbone.module.blocks[2].mlp.fc2
    sites = ["blocks.2.attn", "blocks.2.update"]
    with (
        torch.inference_mode(),
        model.replace("blocks.2.mlp", torch.zeros_like),
        model.capture(sites) as captured,
    ):
        model.forward(images(model))
    mlp = captured["blocks.2.update"] - captured["blocks.2.attn"]
    torch.testing.assert_close(mlp, fc2.bias.expand_as(mlp), rtol=1e-4, atol=1e-5)


def test_replaced_site_is_what_a_capture_sees() -> None:
    model = tiny_model()
    with (
        torch.inference_mode(),
        model.replace("blocks.1.update", lambda x: x + 1),
        model.capture(["blocks.1.update"]) as edited,
    ):
        model.forward(images(model))
    with torch.inference_mode(), model.capture(["blocks.1.update"]) as plain:
        model.forward(images(model))
    torch.testing.assert_close(edited["blocks.1.update"], plain["blocks.1.update"] + 1)


@pytest.mark.parametrize("site", ["blocks.3.update", "blocks.0", "blocks.0.keys", ""])
def test_unknown_site_is_refused_and_says_which_there_are(site: str) -> None:
    with pytest.raises(NotFoundError, match=r"blocks\.0 to blocks\.2"):
        tiny_model().capture([site])


def test_answer_does_not_depend_on_who_shares_the_batch() -> None:
    model = tiny_model()
    batch = images(model, 5)

    def run(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.inference_mode(), model.capture(["blocks.2.update"]) as captured:
            embedding = model.forward(x).embedding
        return embedding, captured["blocks.2.update"]

    together, alone = run(batch), [run(image[None]) for image in batch]
    torch.testing.assert_close(together[0], torch.cat([e for e, _ in alone]))
    torch.testing.assert_close(together[1], torch.cat([u for _, u in alone]))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"init_values": 0.1},
        {"class_token": False, "global_pool": "avg"},
        {"class_token": False, "global_pool": "avg", "pos_embed": "none"},
    ],
)
def test_bfloat16_keeps_the_residual_stream_in_float32(options: dict[str, Any]) -> None:
    backbone = TimmBackbone(tiny_vit(**options))
    model = VitModel("tiny", backbone, Preprocessing(32, 32), dtype="bfloat16")
    with torch.inference_mode(), model.capture(["blocks.0.resid", "blocks.2.update"]) as captured:
        model.forward(images(model))
    assert {value.dtype for value in captured.values()} == {torch.float32}


def test_bfloat16_is_close_to_float32() -> None:
    low = VitModel("tiny", TimmBackbone(tiny_vit()), Preprocessing(32, 32), dtype="bfloat16")
    with torch.inference_mode():
        a, b = low.forward(images(low)).embedding, tiny_model().forward(images(low)).embedding
    assert a.dtype == torch.float32
    assert torch.cosine_similarity(a, b).min() > 0.99


def test_torchvision_logits_equal_the_plain_module() -> None:
    model = torchvision_model()
    with torch.inference_mode():
        out, plain = model.forward(images(model)), model.backbone.module(images(model))
    torch.testing.assert_close(out.logits, plain)


def test_torchvision_grid_has_one_special_token() -> None:
    assert torchvision_model().grid == PatchGrid(4, 4, 1, 8, 8)


def test_torchvision_update_is_output_minus_input() -> None:
    model, module = torchvision_model(), torchvision_model().backbone.module
    x = images(model)
    with torch.inference_mode():
        tokens = module._process_input(x)
        tokens = torch.cat([module.class_token.expand(len(x), -1, -1), tokens], 1)
        tokens = tokens + module.encoder.pos_embedding
        update = module.encoder.layers[0](tokens) - tokens
        with model.capture(["blocks.0.update"]) as captured:
            model.forward(x)
    torch.testing.assert_close(captured["blocks.0.update"], update)


def test_loading_freezes_the_weights() -> None:
    assert not any(p.requires_grad for p in tiny_model().backbone.module.parameters())


def test_weights_hash_is_that_of_the_weights() -> None:
    assert tiny_model().weights_sha256 == tiny_model().weights_sha256


def test_one_changed_weight_changes_the_hash() -> None:
    changed = tiny_model()
    changed.backbone.module.blocks[1].mlp.fc1.bias[3] += 1e-6
    assert changed.weights_sha256 != tiny_model().weights_sha256


@pytest.mark.parametrize("name", ["resnet10t", "mixer_s32_224"])
def test_network_that_is_not_a_vit_is_refused_by_name(name: str) -> None:
    module = timm.create_model(name, pretrained=False)
    with pytest.raises(InvalidInputError, match=type(module).__name__):
        TimmBackbone(module)


def test_blocks_without_separate_attention_are_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"mlp\.fc2"):
        TimmBackbone(tiny_vit(block_fn=ParallelScalingBlock))


def test_gradients_reach_an_edited_site() -> None:
    model = tiny_model()
    leaves: list[torch.Tensor] = []

    def edit(x: torch.Tensor) -> torch.Tensor:
        leaves.append(x.detach().clone().requires_grad_())
        return leaves[0]

    with model.replace("blocks.1.update", edit):
        model.forward(images(model)).embedding.sum().backward()
    assert leaves[0].grad.abs().sum() > 0  # type: ignore[union-attr]

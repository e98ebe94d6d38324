"""Contrastive models: open_clip's own architectures, tiny and random, through local files."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models import build_model_with_cfg
from torch import nn
from torch.nn.functional import normalize

from tests.worlds.tiny import noise_image
from vision_sae.errors import InvalidInputError, NotFoundError
from vision_sae.models.clip import ClipModel
from vision_sae.models.from_open_clip import open_clip_preprocessing
from vision_sae.models.loading import load_model
from vision_sae.models.protocol import ContrastiveModel, Model

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
VISION = {"image_size": 32, "patch_size": 8, "width": 16, "head_width": 8, "layers": 3}
TIMM_SHAPE = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
TEXTS = ["a red apple", "dog", "a very long sentence about a green field under a blue sky"]


def _timm_tower(name: str, **options: Any) -> None:
    """Register a tiny timm ViT under ``name``: open_clip can pass timm no sizes."""

    def entry(pretrained: bool = False, **given: Any) -> nn.Module:
        kind = timm.models.VisionTransformer
        module: nn.Module = build_model_with_cfg(
            kind, name, pretrained, **TIMM_SHAPE | options | given
        )
        return module

    entry.__name__ = name
    timm.models.register_model(entry)


_timm_tower("tiny_clip_trunk")
_timm_tower("tiny_siglip_trunk", class_token=False)

CONFIGS: dict[str, dict[str, Any]] = {
    "clip": {"embed_dim": 12, "vision_cfg": VISION, "text_cfg": TEXT},
    "layer scale": {
        "embed_dim": 12,
        "vision_cfg": VISION | {"ls_init_value": 0.3, "image_size": [32, 48]},
        "text_cfg": TEXT,
        "quick_gelu": True,
    },
    "mean": {
        "embed_dim": 12,
        "vision_cfg": VISION | {"pool_type": "avg", "no_ln_pre": True},
        "text_cfg": TEXT,
    },
    "custom blocks": {
        "embed_dim": 12,
        "vision_cfg": VISION | {"qk_norm": True, "scale_attn": True},
        "text_cfg": TEXT,
        "custom_text": True,
    },
    "timm class token": {
        "embed_dim": 12,
        "vision_cfg": {
            "timm_model_name": "tiny_clip_trunk",
            "timm_pool": "token",
            "image_size": 32,
        },
        "text_cfg": TEXT,
        "custom_text": True,
    },
    "timm mean": {
        "embed_dim": 12,
        "vision_cfg": {"timm_model_name": "tiny_clip_trunk", "timm_pool": "avg", "image_size": 32},
        "text_cfg": TEXT,
        "custom_text": True,
    },
    "siglip": {
        "embed_dim": 32,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {
            "timm_model_name": "tiny_siglip_trunk",
            "timm_pool": "map",
            "timm_proj": "none",
            "image_size": 32,
        },
        "text_cfg": TEXT | {"no_causal_mask": True, "pool_type": "last", "proj_bias": True},
    },
}


@pytest.fixture(scope="module", params=CONFIGS)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in open_clip's layout with random weights of one architecture."""
    return save(CONFIGS[request.param], tmp_path_factory.mktemp("clip"))


def save(config: dict[str, Any], folder: Path, preprocess: dict[str, Any] | None = None) -> Path:
    torch.manual_seed(0)
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": preprocess or {}})
    )
    module = open_clip.create_model(f"local-dir:{folder}")
    for parameter in module.parameters():  # so that no layer passes for an identity
        if parameter.ndim:
            nn.init.normal_(parameter, std=0.3)
    save_file(module.state_dict(), str(folder / "open_clip_model.safetensors"))
    return folder


@cache
def load(folder: Path) -> ClipModel:
    return fresh(folder)


def fresh(folder: Path, dtype: Any = "float32") -> ClipModel:
    model = load_model(f"open_clip-dir:{folder}", dtype=dtype)
    assert isinstance(model, ClipModel)
    return model


@cache
def theirs(folder: Path) -> Any:
    return open_clip.create_model(f"local-dir:{folder}").eval()


def images(model: Model, count: int = 2) -> torch.Tensor:
    shape = (count, 3, model.preprocessing.height, model.preprocessing.width)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def test_clip_is_a_contrastive_model(saved: Path) -> None:
    model = load(saved)
    assert isinstance(model, ContrastiveModel)
    assert model.kind == "clip"
    assert model.name == f"open_clip-dir:{saved}"


def test_image_embeddings_are_those_of_open_clip(saved: Path) -> None:
    model = load(saved)
    with torch.inference_mode():
        ours, plain = model.forward(images(model)), theirs(saved).encode_image(images(model))
    assert ours.logits is None
    assert ours.embedding.shape == (2, model.embedding_dim)
    torch.testing.assert_close(ours.embedding, plain)


def test_text_embeddings_are_those_of_open_clip_and_of_unit_length(saved: Path) -> None:
    tokens = open_clip.get_tokenizer(f"local-dir:{saved}")(TEXTS)
    with torch.inference_mode():
        plain = normalize(theirs(saved).encode_text(tokens), dim=-1)
    ours = load(saved).embed_texts(TEXTS)
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.norm(dim=1), torch.ones(3))


def test_texts_do_not_depend_on_their_company_or_order(saved: Path) -> None:
    model = load(saved)
    alone = torch.cat([model.embed_texts([text]) for text in TEXTS])
    torch.testing.assert_close(model.embed_texts(TEXTS), alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        model.embed_texts(TEXTS[::-1] * 100)[:3], alone.flip(0), rtol=1e-4, atol=1e-5
    )


def test_no_text_gives_no_row(saved: Path) -> None:
    model = load(saved)
    assert model.embed_texts([]).shape == (0, model.embedding_dim)


def test_logit_scale_is_the_exponential(saved: Path) -> None:
    expected = float(theirs(saved).logit_scale.detach().exp())
    assert load(saved).logit_scale == pytest.approx(expected)


def blocks(module: Any) -> Any:
    visual = module.visual
    return visual.trunk.blocks if hasattr(visual, "trunk") else visual.transformer.resblocks


def test_update_is_the_output_of_a_block_minus_its_input(saved: Path) -> None:
    model, plain = load(saved), theirs(saved)
    seen: list[torch.Tensor] = []
    hook = blocks(plain)[1].register_forward_hook(lambda _m, args, out: seen.extend((args[0], out)))
    with hook, torch.inference_mode():
        plain.encode_image(images(model))
        with model.capture(["blocks.1.update", "blocks.1.resid"]) as captured:
            model.forward(images(model))
    assert torch.equal(captured["blocks.1.update"], seen[1] - seen[0])
    assert torch.equal(captured["blocks.1.resid"], seen[1])
    assert captured["blocks.1.update"].shape[1] == model.grid.special + model.grid.patches


def test_attn_and_mlp_are_the_attention_and_what_enters_the_last_linear_map(saved: Path) -> None:
    model, block = load(saved), blocks(theirs(saved))[2]
    out = block.mlp.c_proj if hasattr(block.mlp, "c_proj") else block.mlp.fc2
    seen: dict[str, Any] = {}
    attn = block.attn.register_forward_hook(lambda _m, _a, out: seen.update(attn=out))
    neurons = out.register_forward_pre_hook(lambda _m, args: seen.update(mlp=args[0]))
    sites = ["blocks.2.attn", "blocks.2.mlp"]
    with attn, neurons, torch.inference_mode(), model.capture(sites) as captured:
        theirs(saved).encode_image(images(model))
        model.forward(images(model))
    attended = seen["attn"][0] if isinstance(seen["attn"], tuple) else seen["attn"]
    assert torch.equal(captured["blocks.2.attn"], attended)
    assert torch.equal(captured["blocks.2.mlp"], seen["mlp"])
    assert captured["blocks.2.mlp"].shape[-1] == model.sites["blocks.2.mlp"].dim


def test_sites_come_in_the_order_of_computation(saved: Path) -> None:
    model = load(saved)
    with torch.inference_mode(), model.capture(list(model.sites)) as captured:
        model.forward(images(model))
    assert list(captured) == list(model.sites)


@pytest.mark.parametrize("kind", ["update", "resid", "mlp", "attn"])
def test_replacing_by_itself_is_bit_identical(saved: Path, kind: str) -> None:
    model = load(saved)
    with torch.inference_mode():
        plain = model.forward(images(model)).embedding
        with model.replace(f"blocks.1.{kind}", lambda x: x):
            same = model.forward(images(model)).embedding
    assert torch.equal(same, plain)


@pytest.mark.parametrize("kind", ["update", "mlp", "attn"])
def test_replacing_changes_the_embedding(saved: Path, kind: str) -> None:
    model = load(saved)
    with torch.inference_mode():
        plain = model.forward(images(model)).embedding
        with model.replace(f"blocks.1.{kind}", torch.zeros_like):
            edited = model.forward(images(model)).embedding
    assert not torch.allclose(edited, plain, atol=1e-4)


def test_bfloat16_keeps_the_residual_stream_in_float32(saved: Path) -> None:
    model = fresh(saved, "bfloat16")
    with torch.inference_mode(), model.capture(["blocks.0.resid", "blocks.2.update"]) as captured:
        embedding = model.forward(images(model)).embedding
    assert {value.dtype for value in captured.values()} == {torch.float32}
    assert embedding.dtype == torch.float32


def test_patches_come_with_weights_that_sum_to_one(saved: Path) -> None:
    model = load(saved)
    with torch.inference_mode():
        vectors, weights, whole = model.embed_patches(images(model, 3))
        embedding = model.forward(images(model, 3)).embedding
    if whole is not None:  # only of a tower that is the sum of its patches
        torch.testing.assert_close(whole, embedding, rtol=1e-3, atol=1e-3)
    assert vectors.shape == (3, model.grid.patches, model.embedding_dim)
    assert (vectors.dtype, weights.dtype) == (torch.float32, torch.float32)
    assert weights.min() >= 0
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(3))


@pytest.mark.parametrize("config", ["mean", "timm mean"])
def test_where_the_pooling_is_a_mean_all_patches_make_up_the_image(
    tmp_path: Path, config: str
) -> None:
    model = load(save(CONFIGS[config], tmp_path))
    with torch.inference_mode():
        vectors, weights, _ = model.embed_patches(images(model))
        whole = model.forward(images(model)).embedding
    together = torch.einsum("bp,bpe->be", weights, vectors)
    torch.testing.assert_close(together, whole, rtol=1e-4, atol=1e-4)


def test_patches_of_a_class_token_tower_go_by_the_value_path_of_the_last_block(
    tmp_path: Path,
) -> None:
    """MaskCLIP, written out: the last block's attention becomes W_out (W_value x)."""
    folder = save(CONFIGS["clip"], tmp_path)
    model, visual = load(folder), theirs(folder).visual
    with torch.inference_mode():
        tokens = visual._embeds(images(model))
        first, second, last = visual.transformer.resblocks
        tokens = second(first(tokens))[:, 1:]
        width, attn = tokens.shape[-1], last.attn
        value = last.ln_1(tokens) @ attn.in_proj_weight[2 * width :].T
        tokens = tokens + attn.out_proj(value + attn.in_proj_bias[2 * width :])
        tokens = tokens + last.mlp(last.ln_2(tokens))
        expected = visual.ln_post(tokens) @ visual.proj
        vectors, weights, _ = model.embed_patches(images(model))
    torch.testing.assert_close(vectors, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / 16))


def test_weights_of_map_pooling_are_its_attention(tmp_path: Path) -> None:
    """Asked through the pooling itself: with one-hot values its output is its attention."""
    folder = save(CONFIGS["siglip"], tmp_path)
    model, trunk = load(folder), theirs(folder).visual.trunk
    pool = trunk.attn_pool
    with torch.inference_mode():
        tokens = trunk.forward_features(images(model))
        query = pool.q(pool.latent[0]).reshape(2, 16)
        key = (tokens @ pool.kv.weight[:32].T + pool.kv.bias[:32]).reshape(2, 16, 2, 16)
        shares = torch.einsum("hd,bphd->bhp", query, key).div(4).softmax(-1).mean(1)
        weights = model.embed_patches(images(model)).weights
    torch.testing.assert_close(weights, shares, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("preprocess", "size"),
    [({}, (50, 70)), ({"resize_mode": "squash", "interpolation": "bilinear"}, (70, 41))],
)
def test_preprocessing_is_that_of_open_clip(
    tmp_path: Path, preprocess: dict[str, Any], size: tuple[int, int]
) -> None:
    folder = save(CONFIGS["clip"], tmp_path, preprocess)
    config = PreprocessCfg(**theirs(folder).visual.preprocess_cfg)
    picture = noise_image(*size)
    expected = image_transform_v2(config, is_train=False)(picture)
    torch.testing.assert_close(load(folder).preprocess(picture), expected)


@pytest.mark.parametrize(
    "change",
    [{"resize_mode": "longest"}, {"interpolation": "nearest"}, {"interpolation": "random"}],
)
def test_preprocessing_that_cannot_be_told_back_to_pixels_is_refused(
    change: dict[str, str],
) -> None:
    config = vars(PreprocessCfg()) | change
    with pytest.raises(InvalidInputError, match=next(iter(change.values()))):
        open_clip_preprocessing(config)


def test_a_wide_tower_has_a_wide_grid(tmp_path: Path) -> None:
    grid = load(save(CONFIGS["layer scale"], tmp_path)).grid
    assert (grid.rows, grid.cols, grid.special, grid.patches) == (4, 6, 1, 24)


def test_changed_weights_of_either_tower_change_the_identity(tmp_path: Path) -> None:
    folder = save(CONFIGS["clip"], tmp_path)
    before = fresh(folder).identity()
    assert fresh(folder).identity() == before
    for part in ("visual.proj", "token_embedding.weight"):
        model = fresh(folder)
        model.backbone.module.state_dict()[part][0, 0] += 1
        assert model.identity()["weights_sha256"] != before["weights_sha256"]


RESNET = VISION | {"layers": [1, 1, 1, 1]}
COCA = {
    "embed_dim": 12,
    "vision_cfg": VISION | {"attentional_pool": True, "attn_pooler_heads": 2},
    "text_cfg": TEXT,
}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"embed_dim": 12, "vision_cfg": RESNET, "text_cfg": TEXT}, "ModifiedResNet.*ViT-B-32"),
        (COCA, "several queries"),
        (
            CONFIGS["timm mean"]
            | {"vision_cfg": {"timm_model_name": "resnet10t", "image_size": 32}},
            "ResNet is not a plain vision transformer",
        ),
    ],
)
def test_vision_towers_without_patches_are_refused(
    tmp_path: Path, config: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidInputError, match=said):
        load(save(config, tmp_path))


def test_a_tokenizer_that_drops_words_at_random_is_refused(tmp_path: Path) -> None:
    text = TEXT | {"tokenizer_kwargs": {"reduction_mask": "random"}}
    with pytest.raises(InvalidInputError, match="reduction_mask"):
        load(save(CONFIGS["clip"] | {"text_cfg": text}, tmp_path))


def test_weights_of_the_text_tower_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    path = save(CONFIGS["clip"], tmp_path) / "open_clip_model.safetensors"
    weights = load_file(str(path))
    weights["ln_final.weight"][0] = torch.nan
    save_file(weights, str(path))
    with pytest.raises(InvalidInputError, match="embedding of a text is not finite"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("open_clip:ViT-Z-99", "list_models"),
        ("open_clip:ViT-B-32/never_trained", "laion2b_s34b_b79k"),
        ("open_clip-dir:/nowhere", "open_clip_config.json"),
        ("demo:clap", "dinov2-s, clip"),
    ],
)
def test_unknown_names_are_refused_with_the_ways_out(name: str, said: str) -> None:
    with pytest.raises(NotFoundError, match=said):
        load_model(name)


def test_built_in_names_reach_open_clip_with_their_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Any]] = []
    create = open_clip.create_model

    def record(name: str, *, pretrained: str, **_options: Any) -> nn.Module:
        asked.append((name, pretrained))
        text = TEXT | {"context_length": 77}
        return create("ViT-B-32", load_weights=False, vision_cfg=VISION, text_cfg=text)

    monkeypatch.setattr(open_clip, "create_model", record)
    load_model("open_clip:ViT-B-32/laion2b_s34b_b79k", dtype="float32")
    load_model("open_clip:ViT-B-32", dtype="float32")
    assert asked[0] == ("ViT-B-32", "laion2b_s34b_b79k")
    assert asked[1][1] in open_clip.list_pretrained_tags_by_model("ViT-B-32")


@pytest.mark.parametrize(
    ("tag", "activation"), [("openai", "QuickGELU"), ("laion2b_s34b_b79k", "GELU")]
)
def test_weights_get_the_activation_they_were_trained_with(
    monkeypatch: pytest.MonkeyPatch, tag: str, activation: str
) -> None:
    create = open_clip.create_model

    def small(name: str, *, force_quick_gelu: bool, **_options: Any) -> nn.Module:
        text = TEXT | {"context_length": 77}
        return create(
            name,
            load_weights=False,
            force_quick_gelu=force_quick_gelu,
            vision_cfg=VISION,
            text_cfg=text,
        )

    monkeypatch.setattr(open_clip, "create_model", small)
    model = load_model(f"open_clip:ViT-B-32/{tag}", dtype="float32")
    assert isinstance(model, ClipModel)
    module: Any = model._module
    kinds = {type(part).__name__ for part in module.modules() if "GELU" in type(part).__name__}
    assert kinds == {activation}


def test_pictures_of_any_shape_pass(saved: Path) -> None:
    model = load(saved)
    picture = Image.new("RGB", (61, 37), "red")
    assert model.preprocess(picture).shape == images(model).shape[1:]

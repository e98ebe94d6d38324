"""The adapter of SDXL's pipelines, on a small pipeline of the same classes with random weights."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import diffusers as untyped
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.worlds.tiny import noise_image
from vision_sae.errors import InvalidInputError, NotFoundError
from vision_sae.models.generator import GenerationSettings, Generator
from vision_sae.models.loading import load_generator
from vision_sae.models.pipeline_parity import check_pipeline
from vision_sae.models.sdxl import TURBO_BLOCKS, SdxlModel

diffusers: Any = untyped
SITE = f"{TURBO_BLOCKS[0]}.update"
PROMPT = "a small red star"


@pytest.fixture
def model(tiny_generator: SdxlModel) -> SdxlModel:
    return tiny_generator


def pictures(model: SdxlModel, copies: int = 1, **settings: Any) -> list[Image.Image]:
    run = model.start(*[GenerationSettings(PROMPT, **settings)] * copies)
    for _ in range(run.steps):
        run.advance()
    return run.pictures()


def same(one: Image.Image, other: Image.Image) -> bool:
    return np.array_equal(np.asarray(one), np.asarray(other))


def by_its_own_call(pipeline: Any, guidance: float) -> Image.Image:
    found: Image.Image = pipeline(
        PROMPT,
        num_inference_steps=3,
        guidance_scale=guidance,
        height=64,
        width=64,
        generator=torch.Generator().manual_seed(7),
    ).images[0]
    return found


@pytest.mark.parametrize("guidance", [0.0, 3.0])
def test_steps_make_the_picture_of_the_pipelines_own_call(
    model: SdxlModel, tiny_pipeline: Any, guidance: float
) -> None:
    (made,) = pictures(model, seed=7, steps=3, guidance_scale=guidance)
    assert same(made, by_its_own_call(tiny_pipeline, guidance))


@pytest.mark.parametrize("scheduler", ["EulerDiscrete", "EulerAncestralDiscrete"])
def test_schedulers_of_sdxl_and_of_turbo_make_the_same_picture(
    tiny_pipeline: Any, scheduler: str
) -> None:
    kind = getattr(diffusers, f"{scheduler}Scheduler")
    made = kind.from_config(tiny_pipeline.scheduler.config, timestep_spacing="trailing")
    pipeline = type(tiny_pipeline)(**tiny_pipeline.components | {"scheduler": made})
    model = SdxlModel("euler", pipeline, dtype="float32")
    (found,) = pictures(model, seed=7, steps=3, guidance_scale=3.0)
    assert same(found, by_its_own_call(pipeline, 3.0))


@pytest.fixture
def one_encoder(tiny_pipeline: Any) -> Any:
    """A pipeline of Stable Diffusion 1 and 2: one text encoder, and nothing told of sizes."""
    parts, config = tiny_pipeline.components, dict(tiny_pipeline.unet.config)
    width = parts["text_encoder"].config.hidden_size
    for name in ("addition_embed_type", "addition_time_embed_dim"):
        config[name] = None
    config |= {"projection_class_embeddings_input_dim": None, "cross_attention_dim": width}
    torch.manual_seed(0)
    return diffusers.StableDiffusionPipeline(
        **{name: parts[name] for name in ("vae", "text_encoder", "tokenizer", "scheduler")},
        unet=type(tiny_pipeline.unet).from_config(config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.mark.filterwarnings("ignore:The configuration file of this scheduler")
@pytest.mark.parametrize("guidance", [0.0, 3.0])
def test_a_pipeline_with_one_text_encoder(
    one_encoder: Any, guidance: float, tmp_path: Path
) -> None:
    one_encoder.save_pretrained(tmp_path)
    loaded = load_generator(f"sdxl:{tmp_path}", dtype="float32")
    assert f"{TURBO_BLOCKS[1]}.update" in loaded.sites
    run = loaded.start(GenerationSettings(PROMPT, seed=7, steps=3, guidance_scale=guidance))
    while run.step < run.steps:
        run.advance()
    assert same(run.pictures()[0], by_its_own_call(one_encoder, guidance))


def with_part(pipeline: Any, **parts: Any) -> SdxlModel:
    return SdxlModel("other", type(pipeline)(**pipeline.components | parts), dtype="float32")


SCHEDULERS = [
    ("DDIMScheduler", {"clip_sample": True}),
    ("EulerDiscreteScheduler", {"prediction_type": "v_prediction", "timestep_spacing": "leading"}),
    ("EulerAncestralDiscreteScheduler", {}),
    ("HeunDiscreteScheduler", {}),
    ("LCMScheduler", {}),
    ("PNDMScheduler", {"skip_prk_steps": True}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    ("EDMEulerScheduler", {}),
]


@pytest.mark.parametrize(("kind", "options"), SCHEDULERS)
def test_what_takes_its_pipelines_steps_is_accepted_and_left_as_it_was(
    tiny_pipeline: Any, kind: str, options: dict[str, Any]
) -> None:
    scheduler = getattr(diffusers, kind).from_config(tiny_pipeline.scheduler.config, **options)
    model = with_part(tiny_pipeline, scheduler=scheduler)
    state = torch.get_rng_state()
    check_pipeline(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert "forward" not in vars(model.pipeline.unet)
    (found,) = pictures(model, seed=7, steps=3, guidance_scale=3.0)
    assert same(found, by_its_own_call(model.pipeline, 3.0))


def test_steps_that_the_scheduler_cannot_take_are_refused(tiny_pipeline: Any) -> None:
    scheduler = diffusers.PNDMScheduler.from_config(tiny_pipeline.scheduler.config)
    model = with_part(tiny_pipeline, scheduler=scheduler)  # it begins with four of another kind
    with pytest.raises(InvalidInputError, match="3 steps.*PNDMScheduler") as caught:
        model.start(GenerationSettings(PROMPT, steps=3))
    assert caught.value.field == "steps"


def test_a_scheduler_that_no_pipeline_of_this_kind_runs_is_refused(tiny_pipeline: Any) -> None:
    flow = diffusers.FlowMatchEulerDiscreteScheduler()
    with pytest.raises(InvalidInputError, match="with FlowMatchEulerDiscreteScheduler, is not"):
        check_pipeline(with_part(tiny_pipeline, scheduler=flow))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"time_cond_proj_dim": 16}, "told the guidance"),
        ({"in_channels": 9}, "own call fails"),
        ({"class_embed_type": "timestep"}, "class_labels"),
        ({"out_channels": 12}, "a step fails"),
        ({"sample_size": (32, 48)}, "sample_size"),
        ({"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}, "attention blocks .* Attention"),
    ],
)
def test_a_unet_that_is_asked_otherwise_is_refused(
    tiny_pipeline: Any, change: dict[str, Any], reason: str
) -> None:
    unet = type(tiny_pipeline.unet).from_config(tiny_pipeline.unet.config, **change)
    with pytest.raises(InvalidInputError, match=reason):
        check_pipeline(with_part(tiny_pipeline, unet=unet))


def test_steps_that_are_not_the_pipelines_are_refused(
    tiny_pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(tiny_pipeline), "guidance_scale", 5.0)
    with pytest.raises(InvalidInputError, match="in step 1 its pipeline tells the U-Net another l"):
        check_pipeline(with_part(tiny_pipeline))


def test_latents_with_a_mean_and_a_spread_are_decoded_as_the_pipeline_does(
    tiny_pipeline: Any,
) -> None:
    unet = tiny_pipeline.unet
    torch.manual_seed(0)
    changed = {"in_channels": 4, "out_channels": 4}
    latents = {
        "latent_channels": 4,
        "block_out_channels": (8, 8),
        "norm_num_groups": 4,
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "latents_mean": (0.1, -0.2, 0.3, 0.4),
        "latents_std": (1.0, 2.0, 3.0, 4.0),
        "scaling_factor": 0.5,
    }
    model = with_part(
        tiny_pipeline,
        unet=type(unet).from_config(unet.config, **changed),
        vae=diffusers.AutoencoderKL(**latents),
    )
    check_pipeline(model)
    (made,) = pictures(model, seed=7, steps=3, guidance_scale=3.0)
    assert same(made, by_its_own_call(model.pipeline, 3.0))
    run = model.start(GenerationSettings(image=noise_image(64, 64)))
    encoded = run._latents_of(run._pixels_of(run.batch[0]))
    pixels = model.pipeline.image_processor.preprocess(run.batch[0].image)
    with torch.inference_mode():
        mean = model.pipeline.vae.encode(pixels).latent_dist.mode()
    torch.testing.assert_close(encoded[:, 1], (mean[:, 1] + 0.2) / 2.0 * 0.5)


def test_other_pipelines_are_refused_by_name(tiny_pipeline: Any, tmp_path: Path) -> None:
    tiny_pipeline.save_pretrained(tmp_path)
    index = tmp_path / "model_index.json"
    index.write_text(index.read_text().replace("StableDiffusionXLPipeline", "FluxPipeline"))
    with pytest.raises(InvalidInputError, match="FluxPipeline; supported are Stable"):
        load_generator(f"sdxl:{tmp_path}")


def test_it_is_a_generator(model: SdxlModel) -> None:
    assert isinstance(model, Generator)
    assert (model.usual_side, model.usual_steps, model.usual_guidance) == (64, 4, 0.0)


def test_sites_are_the_attention_blocks_in_order(model: SdxlModel) -> None:
    names = list(model.sites)
    turbo = [f"{block}.update" for block in TURBO_BLOCKS]
    assert [name for name in names if name in turbo] == turbo
    assert names[0] == "down_blocks.2.attentions.0.update"
    assert model.sites[SITE].dim == 64
    with pytest.raises(NotFoundError, match="no site"), model.capture(["mid_block.update"]):
        pass


def test_grid_of_a_site_by_the_size_of_the_picture(two_level_generator: SdxlModel) -> None:
    model = two_level_generator
    grid = model.grid(SITE, 64, 96)
    assert (grid.rows, grid.cols, grid.patch_height, grid.special) == (8, 12, 8, 0)
    assert model.grid("up_blocks.1.attentions.0.update", 64, 64).rows == 16


def test_captured_update_is_the_blocks_output_less_its_input(
    model: SdxlModel, tiny_pipeline: Any
) -> None:
    seen: list[Tensor] = []
    block = tiny_pipeline.unet.down_blocks[2].attentions[1]
    handle = block.register_forward_hook(lambda _m, args, out: seen.append(out[0] - args[0]))
    run = model.start(GenerationSettings(PROMPT))
    with handle, model.capture([SITE]) as captured:
        run.advance()
    update = captured[SITE]
    assert update.shape == (1, 64, 64)
    torch.testing.assert_close(update[0].T.reshape(64, 8, 8), seen[0][0])


def test_guided_steps_hold_the_unconditional_half_first(model: SdxlModel) -> None:
    run = model.start(*[GenerationSettings(PROMPT, guidance_scale=3.0)] * 2)
    assert run.guided
    with model.capture([SITE]) as captured:
        run.advance()
    assert len(captured[SITE]) == 4
    assert not torch.allclose(captured[SITE][0], captured[SITE][2])
    assert torch.allclose(captured[SITE][0], captured[SITE][1])


def test_copies_begin_and_end_alike(model: SdxlModel) -> None:
    one, other = pictures(model, copies=2, seed=3)
    assert same(one, other)


def test_a_batch_may_hold_different_prompts_and_seeds(model: SdxlModel) -> None:
    batch = [GenerationSettings("a star", seed=1), GenerationSettings("a red ring", seed=2)]
    run, apart = model.start(*batch), [model.start(settings) for settings in batch]
    for each in (run, *apart):
        while each.step < each.steps:
            each.advance()
    together = np.stack([np.asarray(p, int) for p in run.pictures()])
    alone = np.stack([np.asarray(each.pictures()[0], int) for each in apart])
    assert np.abs(together - alone).max() <= 1  # up to rounding
    assert np.abs(together[0] - together[1]).max() > 1


@pytest.mark.parametrize("name", ["steps", "guidance_scale", "width"])
def test_a_batch_goes_through_the_same_steps(model: SdxlModel, name: str) -> None:
    with pytest.raises(InvalidInputError, match=f"share {name}"):
        model.start(GenerationSettings(), GenerationSettings(**{name: 8}))  # type: ignore[arg-type]


def test_an_edit_that_changes_nothing_keeps_every_bit(model: SdxlModel) -> None:
    (plain,) = pictures(model)
    with model.replace(SITE, lambda vectors: vectors), model.add(SITE, lambda: None):
        (edited,) = pictures(model)
    assert same(plain, edited)


def test_what_is_added_reaches_the_update(model: SdxlModel) -> None:
    addition = torch.zeros(2, 64, 64)
    addition[0, :, 5] = 1.5
    first = model.start(*[GenerationSettings(PROMPT)] * 2)
    with model.add(SITE, lambda: addition), model.capture([SITE]) as captured:
        first.advance()
    changed = captured[SITE][0] - captured[SITE][1]
    torch.testing.assert_close(changed, addition[0], atol=1e-5, rtol=0)


def test_an_edit_reaches_one_row_of_the_batch_only(model: SdxlModel) -> None:
    def first_only(vectors: Tensor) -> Tensor:
        changed = vectors.clone()
        changed[0] += 30
        return changed

    plain = pictures(model, copies=2)
    with model.replace(SITE, first_only):
        steered, twin = pictures(model, copies=2)
    assert same(twin, plain[1])
    assert not same(steered, plain[0])


def test_generations_at_the_same_time_do_not_see_each_other(model: SdxlModel) -> None:
    def steered(number: int) -> Image.Image:
        addition = torch.zeros(1, 1, 64)
        addition[..., number] = 20
        with model.add(SITE, lambda: addition):
            return pictures(model, seed=number, steps=2)[0]

    alone = [steered(number) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(steered, range(8)))
    assert all(map(same, alone, together))


def test_a_picture_to_start_from_is_kept_by_a_low_strength(model: SdxlModel) -> None:
    start = Image.fromarray(np.full((64, 64, 3), (200, 30, 30), np.uint8))
    run = model.start(GenerationSettings(PROMPT, image=start, strength=0.26, steps=4))
    assert run.steps == 1
    with pytest.raises(InvalidInputError, match="strength"):
        model.start(GenerationSettings(PROMPT, image=start, strength=0.2, steps=4))


def test_sizes_that_the_latents_cannot_have_are_refused(model: SdxlModel) -> None:
    with pytest.raises(InvalidInputError, match="width of 65") as caught:
        model.start(GenerationSettings(PROMPT, width=65))
    assert caught.value.field == "width"


def test_a_saved_pipeline_is_loaded_by_its_folder(
    model: SdxlModel, tiny_pipeline: Any, tmp_path: Path
) -> None:
    tiny_pipeline.save_pretrained(str(tmp_path / "saved"))
    name = f"sdxl:{tmp_path / 'saved'}"
    loaded = load_generator(name, dtype="float32")
    assert isinstance(loaded, SdxlModel)
    assert loaded.identity() == model.identity() | {"name": name}
    assert load_generator(name, dtype="bfloat16").identity() == loaded.identity()
    assert same(pictures(loaded)[0], pictures(model)[0])
    with pytest.raises(NotFoundError, match=r"model_index\.json"):
        load_generator(f"sdxl:{tmp_path}")


@pytest.mark.parametrize("name", ["vit_small", "sdxl:", "demo:dinov2-s"])
def test_names_of_other_models_are_refused_with_the_way_out(name: str) -> None:
    with pytest.raises(NotFoundError, match="sdxl:NAME"):
        load_generator(name)

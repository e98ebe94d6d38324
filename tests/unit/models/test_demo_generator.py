"""The demo generator's parts: its tokenizer is CLIP's, its blocks are where SDXL-Turbo's are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tools.demo import train_generator
from vision_sae.demo import generations
from vision_sae.models.embedded import generator
from vision_sae.models.sdxl import TURBO_BLOCKS, SdxlModel


def test_tokenizer_cuts_captions_as_clips_own_does(tiny_pipeline: Any) -> None:
    clip = open_clip.SimpleTokenizer()
    captions = generations.prompts(20, 0)
    for caption in (*captions, "the shape and colour of a picture"):
        ids = clip.encode(caption)
        assert tiny_pipeline.tokenizer.tokenize(caption) == [clip.decoder[i] for i in ids]


def test_words_without_merges_of_their_own_are_spelt(tiny_pipeline: Any) -> None:
    pieces = tiny_pipeline.tokenizer.tokenize("zyzzyva")
    assert "".join(pieces) == "zyzzyva</w>"
    assert len(pieces) > 1


def test_blocks_are_where_sdxl_turbos_are(tiny_generator: SdxlModel) -> None:
    for block in TURBO_BLOCKS:
        grid = tiny_generator.grid(f"{block}.update", generator.SIDE, generator.SIDE)
        assert (grid.rows, grid.cols) == (8, 8)
    assert tiny_generator.usual_steps == generator.STEPS


def test_prompts_enter_by_the_blocks_alone(tiny_pipeline: Any) -> None:
    reading = {
        name.partition(".transformer_blocks")[0]
        for name, _ in tiny_pipeline.unet.named_modules()
        if name.endswith(".attn2")
    }
    assert reading == {"down_blocks.2.attentions.0", *TURBO_BLOCKS}
    assert not tiny_pipeline.text_encoder_2.text_projection.weight.any()


def test_prompts_are_encoded_in_training_as_at_use(tiny_pipeline: Any) -> None:
    prompts = ["a large red star", ""]
    tokens = train_generator._tokens(tiny_pipeline, prompts)
    with torch.inference_mode():
        hidden, pooled = train_generator.encode_prompts(tiny_pipeline, tokens)
        used, _, used_pooled, _ = tiny_pipeline.encode_prompt(
            prompts, do_classifier_free_guidance=False
        )
    torch.testing.assert_close(hidden, used)
    torch.testing.assert_close(pooled, used_pooled)


def test_latents_are_lightness_colours_and_edges_of_2_by_2_pixels(tiny_pipeline: Any) -> None:
    pixels = torch.zeros(1, 3, 64, 64)  # grey, .5 of each colour
    pixels[0, :, 10:12, 20:22] = torch.tensor([[1.0, -1.0], [1.0, -1.0]])  # white left, black right
    pixels[0, 0, 40:42, 40:42] = 1  # grey but for all of the red
    with torch.inference_mode():
        latents = tiny_pipeline.vae.encode(pixels).latents[0]
    torch.testing.assert_close(
        latents[:, 0, 0], torch.tensor([0.5, 0, 0, 0, 0, 0]), atol=1e-5, rtol=0
    )
    edge = torch.tensor([0.5, 0, 0, 0.5, 0, 0])  # (1 - 0) / 2 from left to right
    torch.testing.assert_close(latents[:, 5, 10], edge, atol=1e-5, rtol=0)
    red = torch.tensor([0.5 + 0.299 / 2, -0.169 / 2, 0.5 / 2, 0, 0, 0])
    torch.testing.assert_close(latents[:, 20, 20], red, atol=1e-5, rtol=0)


def read_unet(pipeline: Path) -> dict[str, torch.Tensor]:
    """Weights of an exported pipeline's U-Net."""
    return load_file(pipeline / "unet" / "diffusion_pytorch_model.safetensors")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_generator, "_BLOCK", 16)
    monkeypatch.setattr(train_generator, "VAE", {"steps": 2, "rate": 1e-3, "batch": 4})
    monkeypatch.setattr(train_generator, "TEXT", {"steps": 2, "rate": 1e-3, "batch": 4})
    monkeypatch.setattr(train_generator, "UNET", {"steps": 3, "rate": 1e-3, "batch": 4})
    monkeypatch.setattr(train_generator, "FURTHER", {"steps": 2, "rate": 1e-3, "batch": 4})


@pytest.mark.slow
def test_every_step_of_the_training_leads_to_a_pipeline(small: None, tmp_path: Path) -> None:
    work, out = tmp_path / "work", tmp_path / "out"
    common = ["--work", str(work), "--scenes", "64", "--out", str(out)]
    for step in ("scenes", "vae", "latents", "text", "unet", "further", "export", "sheet"):
        train_generator.main([step, *common])
    assert Image.open(work / "generated.webp").width > 8 * 64
    latents = np.load(work / "latents.npy")
    assert latents.shape == (64, 6, 32, 32)
    largest = np.quantile(np.abs(latents.astype(np.float32)), 0.998, axis=(0, 2, 3))
    np.testing.assert_allclose(largest, 2.2, rtol=0.25)  # about the mean of each channel
    from vision_sae.models.from_diffusers import load_pipeline
    from vision_sae.models.generator import GenerationSettings, generate

    loaded = load_pipeline(str(out), "demo", dtype="float32")
    (picture,) = generate(loaded, [GenerationSettings("a red star")])
    assert picture.size == (64, 64)
    again = ["--work", str(work), "--start", str(out), "--out", str(tmp_path / "again")]
    (work / "further.pt").unlink()
    for step in ("further", "export"):
        train_generator.main([step, *again])
    before, after = (read_unet(folder) for folder in (out, tmp_path / "again"))
    moved = [float((after[name] - tensor).abs().max()) for name, tensor in before.items()]
    assert 0 < max(moved) < 0.05  # two steps from where the first came to, not from nothing


@pytest.mark.slow
def test_an_interrupted_training_goes_on_to_the_same_weights(small: None, tmp_path: Path) -> None:
    class Stopped(BaseException):
        pass

    def trained(work: Path, stop: int | None) -> list[torch.Tensor]:
        torch.manual_seed(0)
        module = torch.nn.ModuleDict({"layer": torch.nn.Linear(4, 4)})
        training = train_generator.Training(module, 8, 1e-2, work, "t")
        training.checkpoint_seconds = 0.0

        def loss(random: np.random.Generator) -> torch.Tensor:
            if training.step == stop:
                raise Stopped
            rows = torch.from_numpy(random.standard_normal((3, 4), np.float32))
            error: torch.Tensor = (module["layer"](rows) - rows.flip(1)).square().mean()
            return error

        training.run(loss)
        return [p.detach().clone() for p in training.averaged().parameters()]

    undisturbed = trained(tmp_path, None)
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(Stopped):
        trained(other, 5)
    for one, expected in zip(trained(other, None), undisturbed, strict=True):
        assert torch.equal(one, expected)


@pytest.mark.slow
def test_what_ships_is_small_and_makes_what_prompts_say() -> None:
    from vision_sae.models.generator import GenerationSettings, generate
    from vision_sae.models.loading import load_generator, load_model
    from vision_sae.models.similarity import similarities

    weights = list(generator.FOLDER.rglob("*.safetensors"))
    assert {t.dtype for path in weights for t in load_file(path).values()} == {torch.float16}
    assert sum(path.stat().st_size for path in weights) < 8 * 2**20
    prompts = generations.prompts(60, generations.HELDOUT_SEED)
    settings = [GenerationSettings(text, seed=10_000 + i) for i, text in enumerate(prompts[:24])]
    pictures = generate(load_generator("demo:generator"), settings)
    found = similarities(load_model("demo:clip"), pictures, prompts)  # type: ignore[arg-type]
    ranks = (found > np.diag(found)[:, None]).sum(1)
    assert (ranks < 2).mean() > 0.5  # by chance one in thirty

"""Stores of generated pictures: what happened at the sites of every step, beside its prompt."""

from __future__ import annotations

import copy
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.worlds import generations
from vision_sae.activations.generations import harvest_generations, prompted, read_prompts
from vision_sae.bundles.read import Bundle
from vision_sae.config import HarvestConfig
from vision_sae.errors import InvalidInputError, NotFoundError
from vision_sae.models.bound import bound
from vision_sae.models.generator import GenerationSettings
from vision_sae.models.noised import NoisedPictures, Noising
from vision_sae.models.sdxl import SdxlModel

DOWN, UP = generations.SITES


def test_a_record_a_step_holds_what_the_step_captured(
    tiny_generator: SdxlModel, tmp_path: Path
) -> None:
    store = generations.generations(tiny_generator, tmp_path / "store")
    assert len(store.images) == 3 * 2 * 4
    record = store.images[4 * 3 + 2]  # the fourth picture: the second seed of the second prompt
    assert (record.id, record.source, record.caption) == (
        "000003/step-2",
        "000003",
        "a small blue ring",
    )
    # In the batch it was made in: a sum over another number of pictures rounds otherwise.
    items = prompted(generations.PROMPTS, 2)[3:4]
    run = tiny_generator.start(*(GenerationSettings(i.prompt, seed=i.seed) for i in items))
    for _ in range(3):
        with tiny_generator.capture([DOWN, tiny_generator.deepest]) as captured:
            run.advance()
    stored = store.take(DOWN, np.arange(64) + 64 * 14)
    torch.testing.assert_close(stored, captured[DOWN][0], rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(
        store.embeddings[14], captured[tiny_generator.deepest][0].mean(0), rtol=1e-3, atol=1e-4
    )
    run.advance()
    thumbnail = Image.open(io.BytesIO(list(store.thumbnails())[14]))
    buffer = io.BytesIO()
    run.pictures()[0].save(buffer, "JPEG", quality=95)
    difference = np.asarray(thumbnail, int) - np.asarray(Image.open(buffer), int)
    assert np.abs(difference).mean() < 1


def test_an_interrupted_harvest_goes_on(tiny_generator: SdxlModel, tmp_path: Path) -> None:
    whole = generations.generations(tiny_generator, tmp_path / "whole")
    steps: list[int] = []

    class Stopped(BaseException):
        pass

    def stop(*_: object) -> None:
        steps.append(1)
        if len(steps) > 9:  # after the first shard: two batches of four steps
            raise Stopped

    with tiny_generator.pipeline.unet.register_forward_hook(stop), pytest.raises(Stopped):
        generations.generations(tiny_generator, tmp_path / "other")
    seen: list[int] = []
    with tiny_generator.pipeline.unet.register_forward_hook(lambda *_: seen.append(1)):
        other = generations.generations(tiny_generator, tmp_path / "other")
        assert len(seen) == 4  # the second shard, of one batch
        generations.generations(tiny_generator, tmp_path / "other")
        assert len(seen) == 4  # which is there
    assert other.manifest["files"] == whole.manifest["files"]


def test_replicas_make_the_store_of_one_generator(
    tiny_generator: SdxlModel, tmp_path: Path
) -> None:
    one = generations.generations(tiny_generator, tmp_path / "one")
    replica = SdxlModel("tiny", copy.deepcopy(tiny_generator.pipeline), dtype="float32")
    steps: list[int] = []
    with replica.pipeline.unet.register_forward_hook(lambda *_: steps.append(1)):
        both = generations.generations(tiny_generator, tmp_path / "both", [replica])
    assert len(steps) == 4  # of the second of the three batches
    assert both.manifest["files"] == one.manifest["files"]


def test_sites_of_one_store_share_their_grid(
    two_level_generator: SdxlModel, tmp_path: Path
) -> None:
    wide = "down_blocks.1.attentions.0.update"
    config = HarvestConfig(sites=(wide,), limit=1, batch_size=1)
    store = harvest_generations(
        two_level_generator, ["a star"], tmp_path / "wide", config, progress=False
    )
    assert (store.grid.rows, store.rows) == (16, 4 * 256)
    # What a manifest binds is the generator with this grid.
    model = bound(NoisedPictures(two_level_generator), store.manifest["model"])
    assert wide in model.sites
    assert DOWN not in model.sites
    both = HarvestConfig(sites=(wide, DOWN))
    with pytest.raises(InvalidInputError, match="another grid than 16 x 16"):
        harvest_generations(two_level_generator, ["a"], tmp_path / "both", both, progress=False)


def test_views_are_not_of_generations(tiny_generator: SdxlModel, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="several seeds"):
        harvest_generations(
            tiny_generator, ["a"], tmp_path, HarvestConfig(sites=(DOWN,), views=2), progress=False
        )


def test_prompts_are_the_lines_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("a star\n\n  a ring  \n", "utf-8")
    assert read_prompts(path) == ["a star", "a ring"]
    path.write_text("\n")
    with pytest.raises(InvalidInputError, match="one a line"):
        read_prompts(path)
    with pytest.raises(NotFoundError):
        read_prompts(tmp_path / "none.txt")


def test_exemplars_are_of_different_pictures(generated_bundles: list[Bundle]) -> None:
    bundle = generated_bundles[0]
    for feature in np.flatnonzero(bundle.statistics.count):
        sources = [
            bundle.images[e.image].source for group in bundle.exemplars(feature) for e in group
        ]
        assert len(sources) == len(set(sources))
        assert len(sources) <= 6


def test_a_picture_is_seen_as_image_to_image_generation_sees_it(
    tiny_generator: SdxlModel,
) -> None:
    model = NoisedPictures(tiny_generator)
    picture = Image.new("RGB", (64, 64), "orange")
    pixels = model.preprocess(picture)[None]
    with torch.inference_mode(), model.capture([DOWN], stop=True) as captured:
        model.forward(pixels)
    run = tiny_generator.start(GenerationSettings(image=picture, strength=0.5))
    with tiny_generator.capture([DOWN, tiny_generator.deepest]) as expected:
        run.advance()
    torch.testing.assert_close(captured[DOWN], expected[DOWN], rtol=1e-4, atol=1e-4)
    with torch.inference_mode():
        embedding = model.forward(pixels).embedding
    deepest = expected[tiny_generator.deepest]
    torch.testing.assert_close(embedding, deepest.mean(1), rtol=1e-4, atol=1e-4)
    other = model.noised(Noising(strength=0.25, prompt="a ring", seed=3)).forward(pixels)
    assert not torch.allclose(other.embedding, embedding, atol=1e-3)

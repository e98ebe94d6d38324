"""SteeredPictures pictures and their twins, on a small pipeline with random weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.worlds.generations import tensors_alive
from vision_sae.dictionaries.kinds.topk import TopKSae
from vision_sae.errors import FeatureNotFoundError
from vision_sae.models.generator import GenerationSettings
from vision_sae.models.sdxl import TURBO_BLOCKS, SdxlModel
from vision_sae.models.sdxl_denoising import SdxlDenoising
from vision_sae.steering.edits import FeatureEdit, When
from vision_sae.steering.generation import (
    Changes,
    SiteDictionary,
    SteeredGeneration,
    SteeredPictures,
    Steering,
    generate,
)

SITES = [f"{block}.update" for block in TURBO_BLOCKS]
DIM, WIDTH = 64, 32


def dictionary(seed: int) -> TopKSae:
    random = torch.Generator().manual_seed(seed)
    rows = torch.nn.functional.normalize(torch.randn(WIDTH, DIM, generator=random), dim=1)
    return TopKSae(
        k=4, w_enc=rows.clone(), b_enc=torch.zeros(WIDTH), w_dec=rows, b_dec=torch.zeros(DIM)
    )


FOUND = {f"d{i}": SiteDictionary(dictionary(i), site) for i, site in enumerate(SITES)}


def edit(feature: int = 3, operation: Any = "add", value: float = 20.0, **more: Any) -> FeatureEdit:
    return FeatureEdit(more.pop("dictionary", "d2"), feature, operation, value, **more)


def made(model: SdxlModel, *edits: FeatureEdit, **settings: Any) -> SteeredPictures:
    given = {"prompt": "a star", "seed": 5, "steps": 2} | settings
    return generate(model, GenerationSettings(**given), Changes(edits, (), FOUND))


def same(one: Image.Image, other: Image.Image) -> bool:
    return np.array_equal(np.asarray(one), np.asarray(other))


def change(result: SteeredPictures) -> np.ndarray[Any, Any]:
    """Absolute change of the picture (64, 64)."""
    one, other = (np.asarray(p, dtype=np.float32) for p in (result.picture, result.twin))
    return np.asarray(np.abs(one - other).sum(2))


def test_without_edits_picture_and_twin_are_the_same_bits(tiny_generator: SdxlModel) -> None:
    result = made(tiny_generator)
    assert same(result.picture, result.twin)
    assert (result.settings.width, result.settings.guidance_scale) == (64, 0.0)


@pytest.mark.parametrize("guidance", [0.0, 3.0])
@pytest.mark.parametrize("operation", ["add", "clamp", "scale", "ablate", "replace"])
def test_an_edit_changes_the_picture_and_not_its_twin(
    tiny_generator: SdxlModel, operation: str, guidance: float
) -> None:
    plain = made(tiny_generator, guidance_scale=guidance)
    # Of all features where something must fire for the edit to do anything.
    features = range(WIDTH if operation in ("scale", "ablate") else 1)
    several = [edit(feature, operation, 30.0) for feature in features]
    result = made(tiny_generator, *several, guidance_scale=guidance)
    assert same(result.twin, plain.twin)
    assert not same(result.picture, plain.picture)


def test_edits_of_all_blocks_together(tiny_generator: SdxlModel) -> None:
    one = made(tiny_generator, edit(dictionary="d0"))
    other = made(tiny_generator, edit(dictionary="d3"))
    both = made(tiny_generator, edit(dictionary="d0"), edit(dictionary="d3"))
    assert not same(both.picture, one.picture)
    assert not same(both.picture, other.picture)


def test_a_masked_addition_changes_its_site_there_alone(tiny_generator: SdxlModel) -> None:
    weights = torch.zeros(8, 8)
    weights[:4, :4] = 1
    steering = Steering(tiny_generator, Changes([edit(weights=weights.flatten())], (), FOUND))
    run = tiny_generator.start(*[GenerationSettings("a star")] * 2)
    with steering.applied(run), tiny_generator.capture([SITES[2]]) as captured:
        run.advance()
    steered, twin = captured[SITES[2]]
    moved = (steered - twin).norm(dim=1).reshape(8, 8) > 1e-3
    assert torch.equal(moved, weights > 0)


def test_an_edit_outside_of_the_steps_does_nothing(tiny_generator: SdxlModel) -> None:
    assert same(*made(tiny_generator, edit(when=When(2)))[:2])
    late, early = (made(tiny_generator, edit(when=When(s, s))) for s in (0, 1))
    assert not same(late.picture, early.picture)


def test_halves_of_a_guided_batch(tiny_generator: SdxlModel) -> None:
    halves: list[Any] = ["conditional", "both", "opposed"]
    results = [
        made(tiny_generator, edit(half=half, value=5.0), guidance_scale=3.0) for half in halves
    ]
    changes = [change(r).mean() for r in results]
    # Guidance 3 takes 3 times the conditional half less 2 times the other: to oppose is strongest,
    # and what is done to both is amplified least.
    assert changes[1] < changes[0] < changes[2]
    unguided = [made(tiny_generator, edit(half=half, value=5.0)) for half in halves]
    assert same(unguided[0].picture, unguided[1].picture)
    assert same(unguided[0].picture, unguided[2].picture)


@pytest.mark.parametrize("guidance", [0.0, 3.0])
@pytest.mark.parametrize("half", ["conditional", "both", "opposed"])
def test_additions_with_and_without_codes_agree(
    tiny_generator: SdxlModel, half: Any, guidance: float
) -> None:
    plain = made(tiny_generator, edit(value=5.0, half=half), guidance_scale=guidance)
    idle = edit(9, "scale", 1.0, half=half)  # changes nothing, but must look at the site
    looked = made(tiny_generator, edit(value=5.0, half=half), idle, guidance_scale=guidance)
    assert not same(plain.picture, plain.twin)
    difference = np.asarray(plain.picture, int) - np.asarray(looked.picture, int)
    assert np.abs(difference).max() <= 1


def test_a_feature_that_does_not_exist_is_refused_before_any_step(
    tiny_generator: SdxlModel,
) -> None:
    with pytest.raises(FeatureNotFoundError):
        made(tiny_generator, edit(WIDTH))


def test_another_generation_under_way_holds_what_is_its_own_alone(
    tiny_generator: SdxlModel,
) -> None:
    """Texts, noise and latents: no copy of weights, dictionaries, or features."""
    changes = Changes([edit(dictionary=name) for name in FOUND], (), FOUND)

    def begun(seed: int) -> SteeredGeneration:
        started = SteeredGeneration(
            tiny_generator, GenerationSettings("a star", seed=seed), changes
        )
        started.advance()
        return started

    _first, before = begun(1), tensors_alive()
    second = begun(2)
    added = {place: size for place, size in tensors_alive().items() if place not in before}
    texts = tiny_generator.pipeline.text_encoder.config
    told = 2 * (4 * texts.max_position_embeddings * 2 * texts.hidden_size)
    assert isinstance(second.run, SdxlDenoising)
    assert sum(added.values()) < 8 * (second.run.latents.nbytes + told)
    assert sum(added.values()) < sum(before.values()) / 20


def test_the_pixels_that_edits_can_reach(tiny_generator: SdxlModel) -> None:
    """Half of the patches by weights, and further ones once a feature has fired there."""
    site, settings = SITES[2], GenerationSettings("a star", seed=5, steps=2)

    def reached(*edits: FeatureEdit) -> Any:
        generation = SteeredGeneration(tiny_generator, settings, Changes(edits, (), FOUND))
        while not generation.done:
            generation.advance()
        return generation.reached()

    grid = tiny_generator.grid(site, 64, 64)
    weights = torch.zeros(grid.rows, grid.cols)
    weights[:, : grid.cols // 2] = 0.5
    left = np.zeros((64, 64), dtype=bool)
    left[:, :32] = True
    half = edit(weights=weights.reshape(-1))
    np.testing.assert_array_equal(reached(half), left)
    assert reached() is None
    assert reached(half, edit()) is None  # the second edit applies everywhere
    never = edit(feature=4, operation="scale", value=1.0, fires_above=1e9)
    np.testing.assert_array_equal(reached(half, never), left)
    always = edit(feature=4, operation="scale", value=1.0, fires_above=-1.0)
    assert reached(half, always).all()

"""Steered generations without a server, by a tiny generator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import vision_sae as vs
from tests.unit.api.conftest import World
from vision_sae.errors import FeatureNotFoundError, InvalidInputError
from vision_sae.models.generator import GenerationSettings
from vision_sae.models.noised import NoisedPictures
from vision_sae.steering.generation import generate

PROMPT = "a large red star"


@pytest.fixture(scope="module")
def bundle(generated_bundles: list[vs.Bundle]) -> vs.Bundle:
    return generated_bundles[1]


@pytest.fixture(scope="module")
def model(tiny_generator: Any) -> NoisedPictures:
    return NoisedPictures(tiny_generator)


@pytest.fixture(scope="module")
def feature(bundle: vs.Bundle) -> int:
    return int(bundle.statistics.count.argmax())


def ask(bundle: vs.Bundle, model: NoisedPictures, edits: Any, **options: Any) -> vs.Generation:
    return vs.steer(PROMPT, bundle, edits, model=model, seed=5, steps=2, **options)


def test_without_an_edit_the_picture_is_its_twin_and_the_plain_one(
    bundle: vs.Bundle, model: NoisedPictures
) -> None:
    found = ask(bundle, model, [])
    settings = GenerationSettings(PROMPT, seed=5, steps=2).filled(model.generator)
    plain = generate(model.generator, settings)
    np.testing.assert_array_equal(found.numpy(), np.asarray(plain.picture))
    np.testing.assert_array_equal(found.numpy(), np.asarray(found.twin))
    assert (found.changed_share, found.pixel.everywhere, found.perceptual.everywhere) == (0, 0, 0)


def test_a_feature_that_is_raised_changes_the_picture(
    bundle: vs.Bundle, model: NoisedPictures, feature: int
) -> None:
    edit = vs.Edit(feature, "add", 8)
    found = ask(bundle, model, edit)
    moved = np.abs(np.asarray(found.picture, float) - np.asarray(found.twin, float)).mean() / 255
    assert found.pixel.everywhere == pytest.approx(moved, abs=1e-6)
    assert moved > 0
    assert found.pixel.inside is None
    np.testing.assert_array_equal(found.numpy(), ask(bundle, model, edit).numpy())
    mean = float(bundle.statistics.mean[feature])
    raw = ask(bundle, model, vs.Edit(feature, "add", 8 * mean, unit="raw"))
    np.testing.assert_array_equal(found.numpy(), raw.numpy())


def test_an_edit_with_a_place_tells_inside_from_outside(
    bundle: vs.Bundle, model: NoisedPictures, feature: int
) -> None:
    side = model.generator.usual_side
    found = ask(bundle, model, vs.Edit(feature, "add", 8, box=(0, 0, side / 2, side)))
    assert found.pixel.inside is not None
    assert found.pixel.outside is not None
    assert (found.pixel.inside + found.pixel.outside) / 2 == pytest.approx(
        found.pixel.everywhere, rel=1e-4
    )
    own = ask(bundle, model, vs.Edit(feature, "scale", 4, where_it_fires=True))
    assert own.settings.steps == 2


def test_each_prompt_has_a_picture(bundle: vs.Bundle, model: NoisedPictures, feature: int) -> None:
    found = vs.steer(
        [PROMPT, "a green heart"], bundle, vs.Edit(feature, "add", 8), model=model, seed=5, steps=2
    )
    assert [g.settings.prompt for g in found] == [PROMPT, "a green heart"]
    alone = ask(bundle, model, vs.Edit(feature, "add", 8))
    np.testing.assert_array_equal(found[0].numpy(), alone.numpy())


def test_what_cannot_be_met_is_refused(
    bundle: vs.Bundle, model: NoisedPictures, world: World
) -> None:
    with pytest.raises(FeatureNotFoundError):
        ask(bundle, model, vs.Edit(1000))
    with pytest.raises(InvalidInputError, match="guidance_scale above 1"):
        ask(bundle, model, [], negative_prompt="blue", guidance_scale=1.0)
    with pytest.raises(InvalidInputError, match="does not generate"):
        vs.steer(PROMPT, world.bundle, [], model=world.model)


def test_it_shows_itself(bundle: vs.Bundle, model: NoisedPictures, feature: int) -> None:
    found = ask(bundle, model, vs.Edit(feature, "add", 8))
    side = model.generator.usual_side
    assert f"'{PROMPT}', seed 5, 2 steps; add {feature} 8 of up" in str(found)
    assert found.to_pil().size == (3 * side + 8, side)
    assert found._repr_html_().count("<img") == 1
    assert found.to_pandas()["change"].tolist() == ["pixels", "perceptual"]

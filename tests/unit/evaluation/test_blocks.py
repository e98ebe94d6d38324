"""What blocks do: four kinds of change that do not mix, and blocks against random directions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from vision_sae.dictionaries.kinds.topk import TopKSae
from vision_sae.errors import InvalidInputError
from vision_sae.evaluation.blocks import (
    BlockEffects,
    BoostedFeatures,
    Roles,
    difference,
    evaluate_blocks,
    examples,
)
from vision_sae.evaluation.generators import table
from vision_sae.models.generator import GenerationSettings
from vision_sae.models.sdxl import SdxlModel

SITES = ("mid_block.attentions.0.update", "up_blocks.0.attentions.1.update")


def grey(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.astype(np.uint8)).convert("RGB")


FLAT = np.full((64, 64), 100.0)


def test_a_lighter_picture_differs_in_light_alone() -> None:
    found = difference(grey(FLAT), grey(FLAT + 51))
    assert found.light == pytest.approx(51 / 255, abs=1e-3)
    assert max(found.layout, found.detail, found.colour) < 1e-3


def test_a_checkerboard_is_detail() -> None:
    y, x = np.mgrid[:64, :64]
    found = difference(grey(FLAT), grey(FLAT + 20 * (-1.0) ** (x + y)))
    assert found.detail == pytest.approx(20 / 255, abs=0.005)
    assert found.layout < 0.1 * found.detail
    assert found.light < 1e-3


def test_a_half_that_is_darker_is_layout() -> None:
    halves = np.where(np.arange(64) < 32, -20.0, 20.0)[None].repeat(64, 0)
    found = difference(grey(FLAT), grey(FLAT + halves))
    assert found.layout > 5 * found.detail
    assert found.light < 1e-3


def test_another_hue_of_the_same_lightness_is_colour() -> None:
    # Luma .299 R + .587 G + .114 B is 76 of both.
    red, green = Image.new("RGB", (64, 64), (255, 0, 0)), Image.new("RGB", (64, 64), (0, 130, 0))
    found = difference(red, green)
    assert found.colour > 0.2
    assert max(found.light, found.layout, found.detail) < 0.01


def test_the_role_is_what_exceeds_random_directions_most() -> None:
    zero = Roles(0, 0, 0, 0)
    effect = BlockEffects("s", zero, zero, Roles(0.2, 0.9, 0.3, 0.1), Roles(0.2, 0.5, 0.1, 0.2))
    assert effect.role == "colour"  # 3 times; detail 1.8 times


@pytest.fixture(scope="module")
def blocks(tiny_generator: SdxlModel) -> dict[str, BoostedFeatures]:
    random = torch.Generator().manual_seed(0)
    made = {}
    for site in SITES:
        rows = torch.nn.functional.normalize(torch.randn(8, 64, generator=random), dim=1)
        sae = TopKSae(k=2, w_enc=rows, b_enc=torch.zeros(8), w_dec=rows, b_dec=torch.zeros(64))
        made[site] = BoostedFeatures(sae, (0, 3), 30.0)
    return made


PROMPTS = [GenerationSettings("a star", seed=i, steps=2) for i in range(3)]


def test_the_control_is_boosted_by_as_much_whatever_length_decoder_rows_have(
    tiny_generator: SdxlModel, blocks: dict[str, BoostedFeatures]
) -> None:
    site = SITES[0]
    unit = blocks[site]
    sae = unit.dictionary
    assert isinstance(sae, TopKSae)
    quarter = TopKSae(k=2, w_enc=sae.w_enc, b_enc=sae.b_enc, w_dec=sae.w_dec / 4, b_dec=sae.b_dec)
    made = [
        evaluate_blocks(tiny_generator, {site: boosted}, PROMPTS, progress=False)[0]
        for boosted in (unit, BoostedFeatures(quarter, unit.features, 4 * unit.amount))
    ]
    np.testing.assert_allclose(made[0].boosted, made[1].boosted, rtol=1e-3)
    np.testing.assert_allclose(made[0].boosted_random, made[1].boosted_random, rtol=1e-3)


def test_blocks_of_a_generator(
    tiny_generator: SdxlModel, blocks: dict[str, BoostedFeatures]
) -> None:
    found = evaluate_blocks(tiny_generator, blocks, PROMPTS, progress=False)
    assert [effect.site for effect in found] == list(SITES)
    for effect in found:
        for roles in (effect.ablated, effect.ablated_random, effect.boosted, effect.boosted_random):
            assert min(roles) > 0
    again = evaluate_blocks(tiny_generator, blocks, PROMPTS, progress=False)
    assert again == found
    lines = table(found)
    assert len(lines) == 1 + 2 * 5
    assert lines[1].startswith(SITES[0])


def test_pictures_to_look_at(tiny_generator: SdxlModel, blocks: dict[str, BoostedFeatures]) -> None:
    rows = examples(tiny_generator, blocks, PROMPTS)
    assert [len(row) for row in rows] == [3] * 5
    plain = np.asarray(rows[0][0])
    assert all(not np.array_equal(np.asarray(row[0]), plain) for row in rows[1:])


def test_a_single_prompt_differs_from_none(
    tiny_generator: SdxlModel, blocks: dict[str, BoostedFeatures]
) -> None:
    with pytest.raises(InvalidInputError, match="1 prompts") as caught:
        evaluate_blocks(tiny_generator, blocks, PROMPTS[:1], progress=False)
    assert caught.value.field == "prompts"

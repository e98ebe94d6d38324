"""The causal score: trials against random features that are raised by as much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.unit.steering.test_generation import FOUND, SITES
from vision_sae.descriptions.scores.causal import CausalScorer
from vision_sae.models.generator import GenerationSettings, raising
from vision_sae.models.generator import generate as pictures_of
from vision_sae.models.sdxl import SdxlModel
from vision_sae.steering.edits import FeatureEdit
from vision_sae.steering.generation import Changes, generate
from vision_sae.steering.movements import Movements

PROMPTS = [GenerationSettings("a star", seed=i, steps=2) for i in range(4)]


class Told(Movements):
    """Movements (P, E) that are told instead of made; random features are those of ``alive``."""

    def __init__(self, told: Mapping[int, Any], alive: Sequence[int]) -> None:
        super().__init__(
            None,  # type: ignore[arg-type]
            FOUND["d0"],
            None,  # type: ignore[arg-type]
            PROMPTS,
            amount=1.0,
            alive=np.array(alive),
        )
        self._told = told

    def _of(self, feature: int) -> NDArray[np.float32]:
        return np.array(self._told[feature], dtype=np.float32)


def known(movements: dict[int, list[float]]) -> CausalScorer:
    """The scorer of movements toward a text by so much in each of 4 pictures; 9 is not random."""
    told = {feature: [[m, 5.0] for m in moved] for feature, moved in movements.items()}
    return CausalScorer(
        Told(told, [feature for feature in told if feature != 9]),
        lambda texts: np.array([[1.0, 0.0]] * len(texts), dtype=np.float32),
    )


OTHERS = {i: [0.1, 0.2, 0.3, 0.4] for i in range(4)}


def test_the_score_is_the_share_of_trials_won() -> None:
    scorer = known(OTHERS | {9: [0.2, 0.2, 0.2, 0.2]})
    score = scorer.score(9, "red")
    assert score is not None
    # Won, drawn, lost, lost.
    assert score.value == pytest.approx((1 + 0.5 + 0 + 0) / 4)
    assert score.n == 4
    assert (score.metric, score.judge) == ("causal", "steering")
    assert score.lower is not None
    assert score.upper is not None
    assert score.lower < score.value < score.upper


@pytest.mark.parametrize("others", [{}, {9: [0.9, 0.2, 0.2, 0.2]}])
def test_without_a_random_feature_there_is_nothing_to_beat(others: dict[int, list[float]]) -> None:
    told = {i: [[m, 5.0] for m in moved] for i, moved in others.items()}
    scorer = CausalScorer(
        Told(told, list(told)), lambda texts: np.ones((len(texts), 2), np.float32)
    )
    assert scorer.score(9, "red") is None
    assert not scorer.beats_random(9, "red")


def test_beating_random_is_to_move_further_on_average() -> None:
    assert known(OTHERS | {9: [0.9, 0.2, 0.2, 0.2]}).beats_random(9, "red")
    assert not known(OTHERS | {9: [0.2, 0.2, 0.2, 0.2]}).beats_random(9, "red")


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_raising_a_feature_is_the_edit_of_that_name(
    tiny_generator: SdxlModel, guidance: float
) -> None:
    direction = 20 * FOUND["d2"].dictionary.decoder[3]
    prompts = [replace(settings, guidance_scale=guidance) for settings in PROMPTS]
    change = raising(tiny_generator, FOUND["d2"].site, direction)
    pictures = pictures_of(tiny_generator, prompts, change)
    edit = FeatureEdit("d2", 3, "add", 20.0)
    for settings, picture in zip(prompts, pictures, strict=True):
        made = generate(tiny_generator, settings, Changes([edit], (), FOUND))
        difference = np.asarray(picture, int) - np.asarray(made.picture, int)
        assert np.abs(difference).max() <= 2  # of another batch


def test_random_features_are_those_that_fire_and_pictures_are_made_once(
    tiny_generator: SdxlModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []

    def embedded(_model: Any, pictures: list[Any]) -> torch.Tensor:
        calls.append(len(pictures))
        values = torch.tensor([[float(np.asarray(p).mean()), 1.0] for p in pictures])
        return torch.nn.functional.normalize(values, dim=1)

    monkeypatch.setattr("vision_sae.steering.movements.embed_pictures", embedded)
    movements = Movements(
        tiny_generator,
        FOUND["d1"],
        None,  # type: ignore[arg-type]
        PROMPTS,
        amount=20.0,
        alive=np.array([2, 5, 7]),
        randoms=2,
    )
    assert set(movements._randoms) < {2, 5, 7}
    scorer = CausalScorer(
        movements, lambda texts: np.array([[1.0, 0.0]] * len(texts), dtype=np.float32)
    )
    scorer.score(0, "a star")
    scorer.beats_random(0, "another text")
    assert calls == [4] * 4  # plain, the feature, two random ones
    assert SITES[1] == FOUND["d1"].site


def test_another_seed_draws_other_random_features() -> None:
    def drawn(seed: int) -> list[int]:
        made = Movements(
            None,  # type: ignore[arg-type]
            FOUND["d0"],
            None,  # type: ignore[arg-type]
            PROMPTS,
            amount=1.0,
            alive=np.arange(1000),
            randoms=5,
            seed=seed,
        )
        return made._randoms

    assert drawn(0) == drawn(0) != drawn(1)

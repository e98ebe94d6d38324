"""What raising a feature does to scenes, judged by what a classifier sees in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.unit.descriptions.test_scenes_describer import GRID, SCENES, is_, term, world
from tests.worlds.tiny import identity_sae
from vision_sae.descriptions.describers.scenes import ScenesDescriber, read_scenes
from vision_sae.dictionaries.protocol import SiteDictionary
from vision_sae.evaluation import scene_steering
from vision_sae.evaluation.scene_labels import figures, held_share, most_frequent
from vision_sae.evaluation.scene_steering import (
    JUDGE,
    Addition,
    ObjectAdding,
    SceneSteering,
    SteeringJudgement,
    additions,
    judged_by_steering,
    without_object,
)
from vision_sae.models.generator import GenerationSettings
from vision_sae.models.protocol import Site
from vision_sae.pictures.scenes import VALUES, Attributes, draw, read_caption

SITE = "up_blocks.0.attentions.0.update"
RED, STAR, NOTHING = 0, 1, 2
"""Features of `Drawing`: what their directions do to a picture, when long enough."""
DIM = 8


class Drawing:
    """A generator whose pictures are the scenes of prompts: along one dimension of its site objects
    turn red, along another they become stars."""

    usual_side = 64

    def __init__(self) -> None:
        self.sites = {SITE: Site(SITE, "update", DIM)}
        self.device = torch.device("cpu")
        self.added = torch.zeros(1, 1, DIM)

    def grid(self, *_: object) -> object:
        return GRID

    @contextmanager
    def add(self, _: str, addition: Callable[[], Tensor]) -> Iterator[None]:
        self.added = addition()
        yield

    def made(self, settings: Sequence[GenerationSettings], change: Any) -> list[Attributes]:
        class Run:
            guided, batch = False, settings

        self.added = torch.zeros(1, 1, DIM)
        with change(Run()):
            pass
        pictures = []
        for at, each in enumerate(settings):
            scene = read_caption(each.prompt)
            assert scene is not None
            push = self.added[at if len(self.added) > 1 else 0].amax(0)
            scene = replace(scene, colour="red") if push[RED] > 5 else scene
            pictures.append(replace(scene, shape="star") if push[STAR] > 5 else scene)
        return pictures


class Eye:
    """Sees what is drawn."""

    def probabilities(self, pictures: Sequence[Attributes]) -> dict[str, Tensor]:
        shown = torch.tensor([picture.numbers for picture in pictures])
        return {
            name: torch.nn.functional.one_hot(shown[:, i], len(values)).float()
            for i, (name, values) in enumerate(VALUES.items())
        }


@pytest.fixture
def drawing(monkeypatch: pytest.MonkeyPatch) -> Any:
    model = Drawing()
    monkeypatch.setattr(
        scene_steering, "generate", lambda _, settings, how, **__: model.made(settings, how)
    )
    return model


FOUND = SiteDictionary(identity_sae(DIM, 3), SITE)
STARS, REDS = (term("shape", "star"),), (term("colour", "red"),)


def steering(model: Any, amount: float) -> SceneSteering:
    eye: Any = Eye()
    return SceneSteering(model, FOUND, eye, SCENES[:24], amount=amount, randoms=40)


def test_a_label_is_borne_out_by_what_its_feature_does(drawing: Any) -> None:
    judge = steering(drawing, 7.0)
    star = judge.label_effect(STAR, STARS)
    assert star is not None
    assert (star.rise, star.becomes, star.borne_out) == (1.0, 1.0, True)
    assert star.score is not None
    assert (star.score.metric, star.score.judge) == ("causal", JUDGE)
    lacking = sum(scene.shape != "star" for scene in SCENES[:24])
    assert star.score.n == lacking  # twins that have it already say nothing
    assert star.score.value > 0.9
    for feature, label in ((STAR, REDS), (NOTHING, STARS)):
        other = judge.label_effect(feature, label)
        assert other is not None
        assert (other.rise, other.becomes, other.borne_out) == (0.0, 0.0, False)


def test_an_addition_that_is_too_short_does_nothing(drawing: Any) -> None:
    found = steering(drawing, 4.0).label_effect(STAR, STARS)
    assert found is not None
    assert not found.borne_out


def test_without_pictures_that_lack_it_nothing_can_be_said(drawing: Any) -> None:
    anything = tuple(term("size", size) for size in VALUES["size"])
    eye: Any = Eye()
    large = [replace(scene, size="large") for scene in SCENES[:4]]
    judge = SceneSteering(drawing, FOUND, eye, large, amount=7.0, randoms=2)
    assert judge.label_effect(STAR, anything[1:]) is None


def test_an_object_is_added_where_it_was_asked_for(
    drawing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    eye: Any = Eye()
    wanted = additions(SCENES[:12])
    assert all(a.place != a.scene.place for a in wanted)
    assert "centre" not in {a.scene.place for a in wanted}  # there is no room beside it
    # The view without the first object: what is added stands at the asked-for place.
    places = iter([a.place for a in wanted] * 3)
    monkeypatch.setattr(
        scene_steering, "without_object", lambda picture, _: replace(picture, place=next(places))
    )
    judge = ObjectAdding(drawing, FOUND, eye, wanted, amount=7.0)
    already = np.mean([a.scene.shape == "star" for a in wanted])
    assert judge.share(STAR, STARS) == pytest.approx(1 - already)
    assert judge.share(NOTHING, STARS) == 0
    assert judge.share(RED, REDS) is None  # it asks for no object


def test_an_object_is_painted_over_in_the_colour_of_the_rest() -> None:
    scene = replace(SCENES[0], background="white")
    hidden = without_object(draw(scene, side=64, seed=3).image, scene)
    assert isinstance(hidden, Image.Image)
    assert np.asarray(hidden).min() > 250


def test_descriptions_keep_what_steering_says(
    drawing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scene_steering, "without_object", lambda picture, _: picture)
    eye: Any = Eye()
    row: dict[str, Any] = {
        "feature": STAR,
        "text": "a star",
        "scores": [],
        "details": {"terms": [one.to_json() for one in STARS]},
    }
    silent = {"feature": RED, "text": None, "scores": [], "details": {}}
    made = judged_by_steering(
        drawing,
        FOUND,
        eye,
        [row, silent],
        SCENES[:40],
        2.0,
        SteeringJudgement(amount=3.5, adding=1.0, prompts=16, additions=4, randoms=8),
        progress=False,
    )
    assert made[0]["details"][JUDGE]["borne_out"] is True
    assert made[0]["details"][JUDGE]["adds_object"] == 0.0
    assert [score["judge"] for score in made[0]["scores"]] == [JUDGE]
    assert made[1] == silent


def test_audits_look_only_at_prompts_that_nobody_else_saw() -> None:
    evidence = world([is_(shape="star"), is_(colour="red"), lambda _: 0.0])
    rows: dict[int, dict[str, Any]] = {
        d.feature: {"feature": d.feature, "text": d.text, "scores": [], "details": d.details}
        for d in ScenesDescriber().describe(evidence, range(3))
    }
    assert held_share(evidence, 0, rows[0]) == 1
    assert held_share(evidence, 0, rows[1]) is not None
    assert held_share(evidence, 0, rows[1]) != 1  # red, of what stars fire
    assert held_share(evidence, 2, rows[2]) is None
    rows[0]["details"][JUDGE] = {"borne_out": True, "becomes": 0.5, "adds_object": 0.25}
    found = figures(evidence, rows, [0, 1, 2])
    assert (found["described"], found["labelled"]) == (3, 2)
    assert found["attribute_holds"] == 1
    assert (found["causal_share"], found["adds_object"], found["object_labels"]) == (1, 0.25, 1)
    scenes = read_scenes(tuple(evidence.images))
    assert not {*scenes.auditing} & {*scenes.judging, *scenes.choosing, *scenes.proposing}


def test_most_frequent_leaves_out_what_never_fires() -> None:
    assert most_frequent(np.array([3, 0, 9, 1]), 3) == [2, 0, 3]


def test_additions_name_a_place() -> None:
    scene = replace(SCENES[0], place="top left")
    assert additions([scene]) == [Addition(scene, "bottom right")]

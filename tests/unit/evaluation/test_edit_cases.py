"""Edits of scenes: the cases that are committed, and how an edit is judged."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.unit.steering.test_generation import FOUND
from vision_sae.evaluation import edit_cases
from vision_sae.evaluation.edit_cases import (
    ALL,
    CASES,
    EDITED,
    METHODS,
    EditCase,
    evaluate_edits,
    lines,
    make_cases,
    read_cases,
    to_json,
)
from vision_sae.evaluation.scene_attributes import AttributeClassifier, train_classifier
from vision_sae.models.sdxl import SdxlModel
from vision_sae.pictures.scenes import (
    BACKGROUNDS,
    COLOURS,
    VALUES,
    Attributes,
    draw,
    scenes,
)
from vision_sae.steering.generation import SteeredPictures


class FromTheTruth(AttributeClassifier):
    """Sees a plain red star for certain, where its pixels are; without one, an orange ring."""

    def probabilities(self, pictures: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        """{attribute: (N, values)}, each row a one among noughts."""
        found: dict[str, list[torch.Tensor]] = {name: [] for name in VALUES}
        for picture in pictures:
            rows, columns = np.nonzero((np.asarray(picture) == COLOURS["red"]).all(2))
            seen = {"shape": "ring", "colour": "orange", "texture": "plain", "size": "large"}
            place = "centre"
            if len(rows):
                seen |= {"shape": "star", "colour": "red"}
                place = ("top " if rows.mean() < 32 else "bottom ") + (
                    "left" if columns.mean() < 32 else "right"
                )
            corner = tuple(np.asarray(picture)[0, -1].tolist())
            ground = {rgb: name for name, rgb in BACKGROUNDS.items()}[corner]
            for name, value in (seen | {"place": place, "background": ground}).items():
                number = torch.tensor(VALUES[name].index(value))
                found[name].append(torch.nn.functional.one_hot(number, len(VALUES[name])).float())
        return {name: torch.stack(rows) for name, rows in found.items()}


def test_the_committed_cases_are_those_that_are_made() -> None:
    cases = read_cases()
    assert cases == make_cases()
    assert Counter(case.attribute for case in cases) == dict.fromkeys(EDITED, 12)
    row = json.loads(CASES.read_text("utf-8").splitlines()[0])
    assert (row["prompt"], row["edited"]) == (cases[0].before.caption, cases[0].after.caption)


def test_a_case_changes_one_attribute_and_has_its_region() -> None:
    for case in read_cases():
        differing = [n for n in VALUES if getattr(case.before, n) != getattr(case.after, n)]
        assert differing == ["place" if case.attribute == "count" else case.attribute]
        shown = draw(case.before, side=64, seed=0).parts["object"]
        if case.attribute in ("background", "count"):
            assert not (case.region() & shown).any()
        else:
            assert case.region()[shown].all()


def test_of_two_objects_one_at_a_time_is_looked_at() -> None:
    before = Attributes("star", "red", "plain", "large", "top left", "white")
    case = EditCase(before, "count", "bottom right", seed=0)
    one = draw(before, side=64, seed=3).image
    two = Image.fromarray(np.minimum(np.asarray(one), np.asarray(draw(case.after, side=64).image)))
    asked, kept = case.views(two)
    white = np.full((64, 64, 3), 255)
    assert np.abs(np.asarray(kept).astype(int) - np.asarray(one)).max() <= 1
    assert (np.asarray(asked)[:32, :32] == white[:32, :32]).all()
    assert np.array_equal(np.asarray(asked)[32:, 32:], np.asarray(two)[32:, 32:])
    asked, _ = case.views(one)  # of one object nothing is left
    assert (np.asarray(asked) == white).all()


def test_a_second_object_is_a_success_where_the_first_has_stayed() -> None:
    classifier = FromTheTruth()
    before = Attributes("star", "red", "plain", "large", "top left", "white")
    case = EditCase(before, "count", "bottom right", seed=0)
    one, moved = (draw(a, side=64).image for a in (before, case.after))
    two = Image.fromarray(np.minimum(np.asarray(one), np.asarray(moved)))
    added, replaced, nothing = (
        edit_cases._measure(case, SteeredPictures(picture, one, None), classifier, unit=0.1)
        for picture in (two, moved, one)
    )
    assert (added.success, added.preserved, added.toward) == (1, 1, 1)
    assert added.beside == pytest.approx(0, abs=0.02)  # the soft edge around its pixels
    assert (replaced.success, replaced.toward) == (1, 1)
    assert replaced.preserved < 1
    assert replaced.beside > 0.5
    assert (nothing.success, nothing.preserved, nothing.toward) == (0, 1, 0)


def test_patches_of_a_region_are_those_it_covers_by_a_quarter() -> None:
    region = np.zeros((8, 8), bool)
    region[:3, :3] = True  # of 4 x 4 patches of 2 x 2: all, a half, a half, a quarter
    assert edit_cases.patches_of(region, 4, 4).reshape(4, 4)[:2, :2].all()
    region[2, 2] = False
    assert edit_cases.patches_of(region, 4, 4).reshape(4, 4)[1, 1].logical_not()
    tiny = np.zeros((8, 8), bool)
    tiny[0, 0] = tiny[7, 7] = True
    assert int(edit_cases.patches_of(tiny, 2, 2).sum()) == 2  # nothing covers more


def test_precision_is_what_was_wanted_over_all_that_changed() -> None:
    outcomes = [
        edit_cases._CaseScores(1, 1.0, 0.9, 0.1),
        edit_cases._CaseScores(0, 0.6, 0.3, 0.5),
    ]
    found = edit_cases._mean_scores(outcomes, 2.0)
    assert found == pytest.approx((0.5, 0.8, 0.6, 0.3, 0.6 / 0.9, 2.0))
    assert edit_cases._mean_scores([edit_cases._CaseScores(0, 1, -0.2, 0.1)], 1.0).precision == 0


def test_every_method_edits(tiny_generator: SdxlModel) -> None:
    torch.manual_seed(0)
    classifier = AttributeClassifier()
    used = {name: FOUND[name] for name in ("d1", "d3")}
    cases = [case for case in read_cases() if case.attribute in ("colour", "count")][:5]
    found = evaluate_edits(tiny_generator, used, cases, classifier, progress=False)
    assert tuple(found) == METHODS
    for method, of_attributes in found.items():
        assert list(of_attributes) == [ALL, "colour", "count"]
        for edited in of_attributes.values():
            assert np.isfinite(edited[:-1]).all()
            assert edited.beside > 0, method
        assert of_attributes[ALL].strength is None
    assert found["prompt"]["colour"].strength == 1
    assert len(lines(found)) == 1 + 3 * len(METHODS)
    assert to_json(found)["prompt"]["count"]["toward"] == found["prompt"]["count"].toward


@pytest.mark.slow
def test_the_classifier_sees_what_scenes_show() -> None:
    classifier = train_classifier(3000, 6, progress=False)
    shown = [replace(scene.attributes, word=None) for scene in scenes(100, 5, side=64)]
    pictures = [draw(attributes, side=64).image for attributes in shown]
    found = classifier.accuracy(pictures, [attributes.numbers for attributes in shown])
    assert list(found) == list(VALUES)
    assert found["background"] >= 0.95
    assert found["place"] >= 0.9
    assert found["colour"] >= 0.9
    assert found["shape"] >= 0.6
    assert found["texture"] >= 0.3  # chance is .25; textures take the longest

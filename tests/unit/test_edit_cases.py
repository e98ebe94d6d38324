"""Edits of scenes: the cases that are committed, and how an edit is judged."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.unit.test_generation import FOUND
from vision_sae.evaluation import edit_cases
from vision_sae.evaluation.edit_cases import (
    CASES,
    METHODS,
    evaluate_edits,
    lines,
    make_cases,
    read_cases,
)
from vision_sae.evaluation.planted_scenes import VALUES, draw, scenes
from vision_sae.evaluation.scene_attributes import AttributeClassifier, train_classifier
from vision_sae.models.sdxl import SdxlModel


def test_the_committed_cases_are_those_that_are_made() -> None:
    cases = read_cases()
    assert cases == make_cases()
    assert len(cases) == 48
    row = json.loads(CASES.read_text("utf-8").splitlines()[0])
    assert (row["prompt"], row["edited"]) == (cases[0].before.caption, cases[0].after.caption)


def test_a_case_changes_one_attribute_and_has_its_region() -> None:
    for case in read_cases():
        differing = [n for n in VALUES if getattr(case.before, n) != getattr(case.after, n)]
        assert differing == [case.attribute]
        shown = draw(case.before, side=64, seed=0).parts["object"]
        if case.attribute == "background":
            assert not (case.region() & shown).any()
        else:
            assert case.region()[shown].all()


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
        edit_cases._Outcome(1, 1.0, 0.9, 0.1),
        edit_cases._Outcome(0, 0.6, 0.3, 0.5),
    ]
    found = edit_cases._summary(outcomes, 2.0)
    assert found == pytest.approx((0.5, 0.8, 0.6, 0.3, 0.6 / 0.9, 2.0))
    assert edit_cases._summary([edit_cases._Outcome(0, 1, -0.2, 0.1)], 1.0).precision == 0


def test_every_method_edits(tiny_generator: SdxlModel) -> None:
    torch.manual_seed(0)
    classifier = AttributeClassifier()
    used = {name: FOUND[name] for name in ("d1", "d3")}
    found = evaluate_edits(tiny_generator, used, read_cases()[:4], classifier, progress=False)
    assert tuple(found) == METHODS
    for method, result in found.items():
        assert np.isfinite(result).all()
        assert result.beside > 0, method
    assert found["prompt"].strength == 1
    assert len(lines(found)) == 1 + len(METHODS)


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

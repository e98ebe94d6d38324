"""Grounded labels in a world where the right ones are known."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from tests.planted.predicates import Planted, PlantedEvidence, World, accuracy, evidence, units
from vision_sae.descriptions.grounding import Grounding
from vision_sae.descriptions.predicates.facts import Facts
from vision_sae.descriptions.predicates.label import Label, label_from_json, read_label
from vision_sae.descriptions.predicates.looks import Look
from vision_sae.descriptions.predicates.wordnet import nouns
from vision_sae.descriptions.protocol import Description
from vision_sae.descriptions.scores.truth import judge
from vision_sae.evaluation.label_truth import agreement_of_halves, label_truth
from vision_sae.evidence.sources import Sources
from vision_sae.statistics.proportions import wilson

PLANTED = units(40, 5)


@pytest.fixture(scope="module")
def found() -> PlantedEvidence:
    return evidence(World.random(2000, 3), PLANTED, 2)


@pytest.fixture(scope="module")
def grounding(found: PlantedEvidence) -> Grounding:
    return Grounding(Facts(found))


@pytest.fixture(scope="module")
def made(found: PlantedEvidence, grounding: Grounding) -> list[Description]:
    return list(grounding.label(found, range(len(PLANTED))))


def kind(name: str) -> int:
    return nouns().named(name)[0]


def of_sort(made: Sequence[Description], sort: str) -> list[tuple[Planted, Description]]:
    return [(p, d) for p, d in zip(PLANTED, made, strict=True) if p.sort == sort]


def test_units_get_what_was_planted(made: list[Description]) -> None:
    shares = accuracy(PLANTED, made)
    # 9 parents, 8 children, 7 attributes, 3 places, 12 conjunctions, 40 that fire at random
    assert shares["parents"] >= 0.95
    assert shares["children"] >= 0.95
    assert shares["attributes"] >= 0.95
    assert shares["places"] >= 0.95
    assert shares["conjunctions"] >= 0.9
    assert shares["abstained_on_noise"] >= 0.95


def test_a_unit_of_many_animals_is_called_animal_and_one_of_cats_cat(
    made: list[Description],
) -> None:
    texts = {p.words: d.text for p, d in of_sort(made, "parent") + of_sort(made, "child")}
    assert texts["animal",] == "animal"
    assert texts["cat",] == "cat"


def test_every_label_says_who_confirmed_it(made: list[Description]) -> None:
    for planted, description in zip(PLANTED, made, strict=True):
        if description.text is not None:
            assert description.judged_by in ("captions", "pixels", "captions and pixels")
            assert not description.is_guess
            assert {s.metric for s in description.scores} >= {"precision", "lift", "correlation"}
        elif planted.sort == "noise":
            assert description.abstained


def test_a_label_depends_on_its_own_unit_alone(
    found: PlantedEvidence, grounding: Grounding, made: list[Description]
) -> None:
    fresh = Grounding(grounding.facts)
    assert list(fresh.label(found, [7, 3])) == [made[7], made[3]]


def test_nothing_of_the_judging_side_moves_the_choice(
    found: PlantedEvidence, grounding: Grounding, made: list[Description]
) -> None:
    """The captions of all pictures that do not choose are exchanged for another."""
    chooses = grounding.facts.side("choose")
    images = [
        image if chooses[row] else image._replace(caption="a spoon")
        for row, image in enumerate(found.images)
    ]
    other = replace(found, images=images, data_sha256="2" * 64)
    object.__setattr__(other, "activations", found.activations)
    facts = Facts(other)
    again = [d for d in Grounding(facts).label(other, range(len(PLANTED)))]
    chosen = [d.details.get("rejected", d.text) for d in again]
    assert chosen == [d.details.get("rejected", d.text) for d in made]
    # And the judge, who reads them, confirms no kind any more.
    assert not any(d.text and label_from_json(d.details["label"]).kinds for d in again)


def test_a_false_label_fails_before_the_judge(found: PlantedEvidence, grounding: Grounding) -> None:
    animals = next(i for i, p in enumerate(PLANTED) if p.words == ("animal",))
    side = grounding.facts.side("judge")
    right = judge(grounding.facts, found, animals, Label((kind("animal"),)), side=side)
    wrong = judge(grounding.facts, found, animals, Label((kind("vehicle"),)), side=side)
    assert right.judged_by == "captions"
    assert wrong.judged_by == ""
    assert "fewer than" in wrong.reason
    precision = {s.metric: s.value for s in right.scores}["precision"]
    assert precision == 1.0
    # One in nine kinds is an animal, and cats are shown three times as often as the other things.
    base = next(s.control for s in right.scores if s.metric == "precision")
    shown = World.random(2000, 3).shows(
        ("cat", "dog", "horse", "cow", "sheep", "pig", "rabbit", "lion", "wolf", "mouse")
    )[:, 0]
    assert base == pytest.approx(float(shown[side].mean()))


def test_labels_of_other_describers_are_judged_on_what_those_did_not_see(
    found: PlantedEvidence, grounding: Grounding
) -> None:
    cats = next(i for i, p in enumerate(PLANTED) if p.words == ("cat",))
    said = Description(cats, "a cat", "", "contrastive", 1)
    assert grounding.judged(found, said).judged_by == "captions"
    wrong = grounding.judged(found, replace(said, text="a guitar"))
    assert wrong.text is None
    assert wrong.details["rejected"] == "a guitar"
    unknown = replace(said, text="something indescribable")
    assert grounding.judged(found, unknown) == unknown
    assert unknown.is_guess
    assert Sources(found).for_scoring.any()


def test_the_report_counts_what_is_true(
    found: PlantedEvidence, grounding: Grounding, made: list[Description]
) -> None:
    figures = label_truth(found, grounding.facts, made)
    assert figures["noun_holds_for_half"] == 1.0
    assert figures["measured_right"] >= 0.9
    assert figures["unsupported"] == 0
    assert figures["correlation_median"] > 5 * abs(figures["correlation_control_median"])
    assert figures["correlation_median"] > figures["best_constant"]["correlation_median"]
    labelled = [d for d in made if d.text is not None]
    shuffled = [
        replace(d, details=d.details | {"label": other.details["label"]})
        for d, other in zip(labelled, labelled[7:] + labelled[:7], strict=True)
    ]
    broken = label_truth(found, grounding.facts, shuffled)
    assert broken["correlation_median"] < 0.3 * figures["correlation_median"]


def test_halves_agree_when_they_say_the_same_or_a_hypernym() -> None:
    def says(unit: int, label: Label) -> Description:
        return Description(unit, label.text, "", "grounded", 1, details={"label": label.to_json()})

    cat, animal, car = (Label((kind(name),)) for name in ("cat", "animal", "car"))
    red, top = (Label((), (look,)) for look in (Look("colour", "red"), Look("place", "top")))
    one = [says(0, cat), says(1, animal), says(2, car), says(3, red)]
    other = [says(0, animal), says(1, cat), says(2, animal), says(3, top)]
    assert agreement_of_halves(one, other) == 0.5
    assert agreement_of_halves(one, one) == 1.0


@pytest.mark.parametrize(
    ("label", "text"),
    [
        (Label((kind("cat"),)), "cat"),
        (Label((kind("cat"), kind("dog"))), "cat or dog"),
        (Label((), (Look("colour", "red"), Look("ground", "background"))), "red background"),
        (Label((kind("animal"),), (Look("part", "underside"),)), "underside of an animal"),
        (
            Label((), (Look("ground", "edge"), Look("colour", "white"), Look("place", "top"))),
            "white edge of a thing, in the upper part",
        ),
        (Label((kind("cat"),), (Look("colour", "black"),)), "black part of a cat"),
        (Label((), (Look("colour", "black"),)), "something black"),
        (Label((), (Look("place", "bottom"),)), "lower part"),
        (Label((), (Look("lines", "vertical"), Look("colour", "red"))), "red vertical lines"),
    ],
)
def test_labels_read_as_english(label: Label, text: str) -> None:
    assert label.text == text
    assert label_from_json(label.to_json()) == label


def test_texts_are_read_by_their_things_and_colours() -> None:
    read = read_label("a red bus")
    assert [nouns().kinds[k].name for k in read.kinds] == ["bus"]
    assert read.looks == (Look("colour", "red"),)
    assert read_label("orange background").looks == (
        Look("ground", "background"),
        Look("colour", "orange"),
    )
    assert read_label("whatever").length == 0


def test_wilson_by_hand() -> None:
    # 15 of 20 with z = 1.96: (0.531, 0.888), as in any table.
    assert wilson(15, 20)[1:] == pytest.approx((0.531, 0.888), abs=1e-3)
    assert wilson(5, 5).upper == 1.0


def test_planted_sorts_are_all_there() -> None:
    counts = defaultdict(int)
    for planted in PLANTED:
        counts[planted.sort] += 1
    assert dict(counts) == {
        "parent": 9,
        "child": 8,
        "attribute": 7,
        "place": 3,
        "conjunction": 12,
        "noise": 40,
    }
    assert np.unique(World.random(2000, 3).things).size > 70

"""What captions say is shown: nouns, their heads, and the kinds that things belong to."""

from __future__ import annotations

import pytest

from vision_sae.activations.store import ImageRecord
from vision_sae.descriptions.predicates.captions import CaptionKinds, kinds_named, things
from vision_sae.descriptions.predicates.wordnet import nouns


def kinds(text: str) -> set[str]:
    return {nouns().kinds[kind].name for kind in kinds_named(text)}


@pytest.mark.parametrize(
    ("word", "lemma"),
    [
        ("dogs", "dog"),
        ("buses", "bus"),
        ("wolves", "wolf"),
        ("mice", "mouse"),
        ("cherries", "cherry"),
        ("glasses", "glasses"),
        ("firemen", "fireman"),
        ("Dog", "dog"),
        ("jumped", None),
    ],
)
def test_a_word_is_looked_up_by_its_singular(word: str, lemma: str | None) -> None:
    assert nouns().lemma(word) == lemma


@pytest.mark.parametrize(
    ("caption", "named"),
    [
        ("a delivery truck on a red background", ["delivery truck"]),
        ("a beach umbrella", ["umbrella"]),
        ("a grinning cat face", ["face", "cat"]),
        ("a woman walking", ["woman"]),
        ("two dogs and a guitar, at night", ["dogs", "guitar", "night"]),
        ("a large red star at the bottom left of a blue background", ["star"]),
        ("", []),
    ],
)
def test_things_are_the_heads_of_what_a_caption_says(caption: str, named: list[str]) -> None:
    assert things(caption) == named


def test_a_thing_belongs_to_all_kinds_above_its_own() -> None:
    assert {"dog", "animal", "mammal"} <= kinds("a small dog")
    assert {"truck", "motor vehicle", "vehicle"} <= kinds("a delivery truck")
    assert {"fruit", "food", "apple"} <= kinds("red apples")
    assert "animal" not in kinds("a guitar")


def test_people_who_are_called_by_the_name_of_a_thing_are_not_meant() -> None:
    assert "person" not in kinds("a star")
    assert "person" not in kinds("a dog")
    assert "person" in kinds("a fireman")


def test_pictures_without_words_are_not_known_to_show_nothing() -> None:
    def record(caption: str, *tags: str) -> ImageRecord:
        return ImageRecord(f"{caption}.png", 8, 8, caption, tags)

    found = CaptionKinds([record("a cat"), record("", "dog"), record("")])
    animal = nouns().named("animal")
    assert found.of(animal).tolist() == [True, True, False]
    assert found.captioned.tolist() == [True, True, False]

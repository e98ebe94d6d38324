"""Whole words, so that an audit for "red" does not find "colored"."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vision_sae.descriptions.matching import matches
from vision_sae.errors import InvalidInputError


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("red", "red things"),
        ("red", "Blue, RED and green"),
        ("red", "red-striped cloth"),
        ("dog", "two dogs"),
        ("dogs", "a dog's head"),
        ("dog", "the dogs’ heads"),
        ("box", "boxes of fruit"),
        ("cherries", "a cherry"),
        ("leaf", "leaves on the ground"),
        ("knife", "knives"),
        ("glove", "gloves"),
        ("horse", "horses"),
        ("shoe", "shoes"),
        ("tomato", "tomatoes"),
        ("bus", "buses"),
        ("lens", "lenses"),
        ("women", "a woman with a hat"),
        ("person", "people in a street"),
        ("human face", "Human faces, close"),
        ("face of a child", "the faces of a child"),
        ("3", "the number 3"),
        ("bär", "Bär im Wald"),
    ],
)
def test_words_and_phrases_that_match(query: str, text: str) -> None:
    assert matches(query, text)


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("red", "colored glass"),
        ("red", "a hundred"),
        ("text", "textures"),
        ("letter", "letterbox"),
        ("man", "woman"),
        ("man", "women"),
        ("car", "a scar on a cart"),
        ("new", "news on paper"),
        ("cap", "capes"),
        ("gras", "grass"),
        ("human face", "a face of a human"),
        ("human face", "human or animal face"),
        ("human face", "human"),
        ("dog", ""),
    ],
)
def test_words_and_phrases_that_do_not(query: str, text: str) -> None:
    assert not matches(query, text)


@pytest.mark.parametrize("query", ["", "  ", "?!", "'s"])
def test_query_without_a_word_is_refused(query: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        matches(query, "anything")
    assert refused.value.field == "query"


WORDS = st.lists(st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=8), min_size=1)


@given(WORDS, WORDS, WORDS)
def test_every_run_of_words_is_found_in_what_holds_it(
    before: list[str], words: list[str], after: list[str]
) -> None:
    assert matches(" ".join(words), " ".join([*before, *words, *after]).upper())


@given(st.text("abcdefghijklmnopqrt", min_size=3, max_size=8))
def test_no_part_of_a_longer_word_is_found(word: str) -> None:
    assert not matches(word, f"x{word}")
    assert not matches(word, f"{word}x")

"""Sections that kinds bring along, and values given as ``--set KEY=VALUE``."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import Field, ValidationError

from vision_sae.errors import InvalidInputError
from vision_sae.registry import Registry
from vision_sae.sections import (
    NoSettings,
    Section,
    SectionsByKind,
    Setting,
    parse_settings,
    refusal,
    settings_of,
    validated,
)


class Inner(Section):
    steps: int = 0


class Loud(Section):
    """Settings of the kind ``quite-loud``."""

    level: int = Field(3, ge=0)
    """How loud,
    from silence up."""
    name: str = "horn"
    shares: tuple[float, ...] = (1.0,)
    inner: Inner = Inner()


KINDS: Registry[Any] = Registry(
    "noise", package="vision_sae.no_such_package", group="none", field="noises.noise"
)
KINDS.register(SimpleNamespace(name="quite-loud", settings=Loud))
KINDS.register(SimpleNamespace(name="silent", settings=NoSettings))


class Noises(SectionsByKind):
    noise: str = "quite-loud"

    @classmethod
    def kinds(cls) -> Registry[Any]:
        return KINDS


def test_a_section_is_checked_by_its_kind() -> None:
    made = Noises.model_validate({"quite_loud": {"level": 5}})
    assert made.of("quite-loud") == Loud(level=5)
    assert made.model_dump()["quite_loud"]["level"] == 5
    assert Noises().of("quite-loud") == Loud()


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"quiet": {}}, "noises.quiet"),
        ({"quite_loud": {"levle": 5}}, "noises.quite_loud.levle"),
        ({"quite_loud": {"level": -1}}, "noises.quite_loud.level"),
        ({"quite_loud": {"inner": {"steps": "many"}}}, "noises.quite_loud.inner.steps"),
        ({"quite_loud": 5}, "noises.quite_loud"),
    ],
)
def test_a_refusal_names_the_dotted_field(given: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Noises.model_validate(given)
    assert refusal(caught.value, "noises").field == field


def test_texts_mean_what_the_section_says_of_the_field() -> None:
    given = {"level": "7", "name": "5", "shares": "[0.5, 1]", "inner": {"steps": "2"}}
    assert validated(Loud, given) == Loud(
        level=7, name="5", shares=(0.5, 1.0), inner=Inner(steps=2)
    )


def test_a_text_that_is_no_value_is_refused_by_its_field() -> None:
    with pytest.raises(InvalidInputError, match="valid integer") as caught:
        validated(Loud, {"level": "high", "shares": "[1]"}, "noises", "quite_loud")
    assert caught.value.field == "noises.quite_loud.level"


def test_assignments_become_a_mapping() -> None:
    given = parse_settings(["level=5", "inner.steps = 2", "name=a=b"])
    assert given == {"level": "5", "inner": {"steps": "2"}, "name": "a=b"}


@pytest.mark.parametrize("assignment", ["level", "", "=5", "a..b=5", "a b=5"])
def test_what_is_no_assignment_is_refused(assignment: str) -> None:
    with pytest.raises(InvalidInputError, match="KEY=VALUE") as caught:
        parse_settings([assignment])
    assert caught.value.field == "set"


def test_assignments_replace_some_settings_of_one_kind() -> None:
    made = Noises.model_validate({"quite_loud": {"level": 5, "name": "drum"}})
    changed = made.with_settings("quite-loud", {"level": "6"}, "noises")
    assert changed.of("quite-loud") == Loud(level=6, name="drum")
    with pytest.raises(InvalidInputError) as caught:
        made.with_settings("quite-loud", {"levle": "6"}, "noises")
    assert caught.value.field == "noises.quite_loud.levle"


def test_a_copy_keeps_the_section_of_one_kind_with_its_defaults() -> None:
    both = Noises.model_validate({"noise": "silent", "quite_loud": {"level": 5}, "silent": {}})
    assert both.kinds_with_section == ("quite-loud", "silent")
    one = both.with_one_section("quite-loud")
    assert one.kinds_with_section == ("quite-loud",)
    assert one.model_dump() == {"noise": "silent", "quite_loud": Loud(level=5).model_dump()}
    assert both.with_one_section("silent").kinds_with_section == ()
    assert Noises().with_one_section("quite-loud").model_dump()["quite_loud"]["name"] == "horn"


def test_settings_are_listed_with_their_sentences() -> None:
    first, second, *_ = settings_of(Loud)
    assert first == Setting("level", "int", 3, "How loud, from silence up.")
    assert second == Setting("name", "str", "horn", "")

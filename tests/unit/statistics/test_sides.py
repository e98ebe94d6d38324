"""Which pictures may choose, judge and audit."""

from __future__ import annotations

from collections import Counter

import pytest

from vision_sae.statistics.sides import SIDES, on_sides, side_of


def test_half_of_all_sources_choose_and_a_quarter_each_judge_and_audit() -> None:
    counts = Counter(side_of(f"photograph {number}") for number in range(8000))
    assert counts["choose"] / 8000 == pytest.approx(0.5, abs=0.02)
    assert counts["judge"] / 8000 == pytest.approx(0.25, abs=0.02)
    assert counts["audit"] / 8000 == pytest.approx(0.25, abs=0.02)


def test_a_source_is_on_the_same_side_in_every_data_set() -> None:
    # SHA-256 of "a" begins with 0xca = 202 = 2 modulo 4: the judging quarter.
    assert side_of("a") == "judge"
    # That of "b" with 0x3e = 62 = 2, of "hello" with 0x2c = 44 = 0, of "abc" with 0xba = 186 = 2.
    assert side_of("b") == "judge"
    assert side_of("hello") == "choose"
    # That of "test" begins with 0x9f = 159 = 3.
    assert side_of("test") == "audit"


def test_a_picture_of_sources_on_several_sides_is_on_none() -> None:
    assert side_of("hello + test") is None
    assert side_of("a + b") == "judge"


def test_the_sides_share_no_picture() -> None:
    origins = [f"{number}.png" for number in range(100)]
    sides = [on_sides(origins, side) for side in SIDES]
    assert sum(sides).tolist() == [1] * 100  # type: ignore[union-attr]
    assert (on_sides(origins, "judge", "audit") == (sides[1] | sides[2])).all()

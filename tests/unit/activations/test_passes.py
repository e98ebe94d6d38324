"""A pass over items in units of work: what is looked at, what is kept, and in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Barrier

import pytest

from tests.worlds.tiny import picture_folder, tiny_model
from vision_sae.activations.decoding import DecodedBatch
from vision_sae.activations.passes import (
    Look,
    Pass,
    across,
    in_groups,
    look_at_pictures,
    one_behind,
)
from vision_sae.errors import InvalidInputError
from vision_sae.pictures.folder import Picture, image_folder
from vision_sae.pictures.reading import Reading


@dataclass
class Journal:
    """A sink that notes what it is told."""

    told: list[str] = field(default_factory=list)

    def add(self, part: str) -> None:
        self.told.append(part)

    def commit(self, unit: int) -> None:
        self.told.append(f"unit {unit}")


def look(batches: Sequence[Sequence[str]]) -> Iterator[str]:
    return ("".join(batch).upper() for batch in batches)


def test_batches_never_cross_the_end_of_a_unit() -> None:
    journal = Journal()
    Pass({0: "abc", 2: "de"}, 2, look, "a title").run(journal, progress=False)
    assert journal.told == ["AB", "C", "unit 0", "DE", "unit 2"]


def test_pass_without_units_looks_at_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(_batches: Sequence[Sequence[str]]) -> Iterator[str]:
        pytest.fail("looked")

    Pass({}, 2, fail, "a title", done=5).run(Journal(), progress=True)
    assert capsys.readouterr().err == ""


def test_unit_that_is_not_finished_is_not_committed() -> None:
    def dies(_batches: Sequence[Sequence[str]]) -> Iterator[str]:
        yield from ("AB", "C", "D")
        raise KeyboardInterrupt

    journal = Journal()
    with pytest.raises(KeyboardInterrupt):
        Pass({0: "abc", 1: "def"}, 2, dies, "a title").run(journal, progress=False)
    assert journal.told == ["AB", "C", "unit 0", "D"]


def test_progress_counts_what_an_earlier_run_has_done(capsys: pytest.CaptureFixture[str]) -> None:
    def twice(items: Sequence[str]) -> int:
        return 2 * len(items)

    Pass({1: "cd"}, 1, look, "a title", done=4, size=twice).run(Journal(), progress=True)
    shown = capsys.readouterr().err
    assert "a title" in shown
    assert "8/8" in shown


def test_groups() -> None:
    assert in_groups("abcde", 2) == ["ab", "cd", "e"]
    assert in_groups("", 2) == []


def looking(reading: Reading, *, apart: bool) -> Look[Picture, list[str]]:
    """What tells the names of the pictures of a batch."""

    def names(batch: DecodedBatch) -> list[str]:
        return [record.id for record in batch.records]

    return look_at_pictures(tiny_model(), names, thumbnail=16, reading=reading, apart=apart)


@pytest.mark.parametrize("apart", [True, False])
def test_pictures_are_seen_in_order_and_files_that_are_none_are_left_out(
    tmp_path: Path, apart: bool
) -> None:
    pictures = image_folder(picture_folder(tmp_path, 5))
    pictures[1].path.write_bytes(b"")
    batches = in_groups(pictures, 2)
    found = list(looking(Reading(), apart=apart)(batches))
    assert found == [["000.png"], ["002.png", "003.png"], ["004.png"]]


@pytest.mark.parametrize("apart", [True, False])
def test_strict_reading_refuses_the_first_file_that_is_no_picture(
    tmp_path: Path, apart: bool
) -> None:
    pictures = image_folder(picture_folder(tmp_path, 3))
    pictures[1].path.write_bytes(b"")
    found = looking(Reading(strict=True), apart=apart)(in_groups(pictures, 1))
    assert next(found) == ["000.png"]
    with pytest.raises(InvalidInputError, match=r"001\.png"):
        next(found)


def test_a_part_is_finished_when_the_next_has_begun() -> None:
    told = list[str]()

    def finish(batch: str) -> str:
        told.append(f"finish {batch}")
        return batch

    def begin(batches: Sequence[Sequence[str]]) -> Iterator[Callable[[], str]]:
        for batch in map(str, batches):
            told.append(f"begin {batch}")
            yield partial(finish, batch)

    assert list(one_behind(begin)(["a", "b", "c"])) == ["a", "b", "c"]
    assert told == ["begin a", "begin b", "finish a", "begin c", "finish b", "finish c"]
    assert list(one_behind(begin)([])) == []


@pytest.mark.parametrize("count", [0, 1, 2, 5, 6])
def test_looks_share_batches_in_turns_and_parts_keep_their_order(count: int) -> None:
    both = Barrier(2)  # two looks that run side by side pass it, one after the other never would

    def looker(name: str, meets: int) -> Look[str, str]:
        def see(batches: Sequence[Sequence[str]]) -> Iterator[str]:
            for number, batch in enumerate(batches):
                if number < meets:
                    both.wait(10)
                yield f"{name}{batch}"

        return see

    meets = count // 2
    shared = across([looker("a", meets), looker("b", meets)])
    expected = ["a0", "b1", "a2", "b3", "a4", "b5"][:count]
    assert list(shared([str(number) for number in range(count)])) == expected


def test_what_a_look_raises_is_raised_in_its_turn() -> None:
    def fails(_batches: Sequence[Sequence[str]]) -> Iterator[str]:
        yield "first"
        raise ValueError("unlucky")

    found = across([look, fails])(["a", "b", "c", "d"])
    assert [next(found) for _ in range(3)] == ["A", "first", "C"]
    with pytest.raises(ValueError, match="unlucky"):
        next(found)

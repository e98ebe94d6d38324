"""No traceback for a user's mistake: every command with one wrong argument at a time.

Every seventh case is tried here, `python -m tests.benchmarks.faults` tries them all.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import pytest
import typer

from tests.fault import commands, outputs
from tests.fault.commands import ASKING, DRAWING, REFUSED_ONLY, STATUSES, WORKING, Wrong
from tests.worlds import serving
from tests.worlds import wire as wire_world

pytestmark = pytest.mark.slow
_EVERY = 7
"""It divides neither 6, 10 nor 11, the numbers of values of a kind: each meets some argument."""
_SECONDS = 10
"""When the clock ends what a wrong value, which is fit after all, would do for long."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = commands.make_world(tmp_path_factory.mktemp("mistakes") / "world")
    outputs.furnish(made)
    return made


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, which relative paths name."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    return tmp_path


def _by_command(cases: Iterable[Wrong]) -> dict[str, list[Wrong]]:
    found: dict[str, list[Wrong]] = {}
    for case in cases:
        words = case.args[:2] if case.args[0] == "evaluate" else case.args[:1]
        found.setdefault(" ".join(words), []).append(case)
    return found


COMMANDS = _by_command(islice(commands.cases(WORKING + REFUSED_ONLY), 0, None, _EVERY))


def _check(case: Wrong, seen: commands.Seen) -> list[str]:
    said = seen.output[-300:]
    return [
        f"{case} [{case.parameter}]: {fault}"
        for fault, found in (
            (f"traceback {seen.traceback}", seen.traceback),
            (f"status {seen.status}", seen.status is not None and seen.status not in STATUSES),
            (f"does not name it: {said!r}", seen.unnamed(case)),
        )
        if found
    ]


@pytest.mark.parametrize(
    ("program", "tables"),
    [(commands.library, WORKING + REFUSED_ONLY), (commands.client, ASKING + DRAWING)],
    ids=["library", "client"],
)
def test_every_command_is_tried(program: typer.Typer, tables: commands.Table) -> None:
    tried = {" ".join(args[: 2 if args[0] == "evaluate" else 1]) for _, args in tables}
    assert commands.named(program) - tried <= {"doctor"}  # which takes no argument


@pytest.mark.parametrize("args", WORKING, ids=lambda pair: "-".join(pair[1][:2]))
def test_what_is_tried_works_when_nothing_is_wrong(
    world: Path, elsewhere: Path, args: tuple[object, tuple[str, ...]]
) -> None:
    """Else the refusals below could be of something else."""
    mine = elsewhere / "world"
    shutil.copytree(world, mine, symlinks=True)
    seen = commands.run(commands.library, tuple(commands.filled(args[1], mine, elsewhere)), 120)
    assert (seen.status, seen.traceback) == (0, ""), seen.output


@pytest.mark.parametrize("command", COMMANDS)
def test_no_wrong_argument_ends_in_a_traceback(world: Path, elsewhere: Path, command: str) -> None:
    faults = []
    for number, case in enumerate(COMMANDS[command]):
        (elsewhere / str(number)).mkdir()
        faults += _check(case, commands.try_case(case, world, elsewhere / str(number), _SECONDS))
    assert not faults, "\n".join(faults)


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Of a server of pictures, and of one that generates."""
    root = tmp_path_factory.mktemp("servers")
    with (
        serving.address(wire_world.picture_state(root / "seeing")) as seeing,
        serving.address(wire_world.drawing_state(root / "painting")) as painting,
    ):
        yield seeing, painting


@pytest.mark.parametrize("number", [0, 1])
def test_no_wrong_argument_of_the_client_ends_in_a_traceback(
    world: Path, elsewhere: Path, addresses: tuple[str, str], number: int
) -> None:
    faults, table = [], (ASKING, DRAWING)[number]
    cases = commands.cases(table, ("--address", addresses[number]))
    for count, case in enumerate(islice(cases, 0, None, _EVERY)):
        (elsewhere / str(count)).mkdir()
        faults += _check(case, commands.try_case(case, world, elsewhere / str(count), _SECONDS))
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("writer", outputs.WRITERS, ids=lambda args: "-".join(args[:2]))
def test_no_output_costs_anybody_a_file(
    world: Path, elsewhere: Path, writer: tuple[str, ...]
) -> None:
    before, faults = outputs.contents(world), []
    for place in outputs.PLACES:
        case = outputs.Output(tuple(arg.replace("{o}", place) for arg in writer))
        seen = outputs.try_output(case, world, elsewhere, _SECONDS)
        gone = outputs.lost(before, outputs.contents(world))
        faults += [f"{case}: {seen.traceback}"] * bool(seen.traceback)
        faults += [f"{case} lost {gone}"] * bool(gone)
        if gone:
            break  # nothing that follows would show more
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("args", WORKING, ids=lambda pair: "-".join(pair[1][:2]))
def test_full_disk_is_told_and_nothing_that_was_there_is_lost(
    world: Path, elsewhere: Path, args: tuple[object, tuple[str, ...]]
) -> None:
    mine = elsewhere / "world"
    shutil.copytree(world, mine, symlinks=True)
    before = outputs.contents(mine)
    filled = tuple(commands.filled(args[1], mine, elsewhere))
    with commands.full_disk(3000):
        seen = commands.run(commands.library, filled, 120)
    assert not seen.traceback
    assert seen.status == 0 or "cannot be written" in seen.output, seen.output
    # A label store that is opened may be of an older layout, and brought to today's.
    kept = {path: digest for path, digest in before.items() if not path.endswith(".sqlite")}
    assert not outputs.lost(kept, outputs.contents(mine))

"""How commands end: the documented exit statuses, and no traceback for what is nobody's fault."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import typer
from typer.testing import CliRunner
from vision_sae_client.cli.command import command as client_command

from vision_sae.cli.command import command as library_command
from vision_sae.errors import InvalidInputError


def interrupted() -> None:
    raise KeyboardInterrupt


def refused() -> None:
    raise InvalidInputError("size must be 1 or more")


def unread() -> None:
    raise BrokenPipeError


@pytest.mark.parametrize(
    ("function", "status", "says"),
    [
        (interrupted, 130, "{}: interrupted\n"),
        (refused, 2, "{}: size must be 1 or more\n"),
        (unread, 141, ""),
    ],
)
@pytest.mark.parametrize("program", ["vision-sae", "vision-sae-client"])
def test_statuses_and_lines(
    program: str, function: Callable[[], None], status: int, says: str
) -> None:
    group = typer.Typer()
    if program == "vision-sae":
        library_command("one", group)(function)
    else:
        run = client_command(function)
        group.command()(run.callback if hasattr(run, "callback") else run)
    result = CliRunner().invoke(group, [])
    assert result.exit_code == status
    assert result.stderr == says.format(program)


def test_a_reader_who_goes_away_is_no_fault() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "vision_sae.cli", "dictionaries"]
    ended = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (141, b"")

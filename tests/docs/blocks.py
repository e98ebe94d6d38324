"""The code blocks of README.md and of the site's pages, and how each kind of block is run.

Blocks ``python`` run as they stand. The commands of blocks ``sh`` run in this process, so that
torch is imported once. Blocks ``yaml`` are configurations, which are read. A block that no test can
run has a comment ``<!-- skip: next "reason" -->`` above it. A page says in a comment of its first
line with what small data its blocks are run: ``<!-- tested with: pictures, server -->``.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from sybil import Example, Sybil
from sybil.document import Document
from sybil.evaluators.skip import Skipper
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

ROOT = Path(__file__).resolve().parents[2]
_WORLD = re.compile(r"\A<!-- tested with: ([a-z, ]+) -->")
RUN = ("python", "sh", "yaml")
"""Languages of blocks that are run."""
SHOWN = ("math", "text", "toml")
"""Languages of blocks that show formulas, layouts and answers."""


def pages() -> list[Path]:
    """README.md and every page of the site that is a file of ``docs``."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def needs(page: Path) -> list[str]:
    """What a page is run with."""
    told = _WORLD.match(page.read_text("utf-8"))
    return [each.strip() for each in told[1].split(",")] if told else []


def commands(source: str) -> Iterator[list[str]]:
    """The words of each command of a block ``sh``."""
    for line in source.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def run_commands(example: Example) -> None:
    """Run a block ``sh``: each of its commands is one of ours, and ends well."""
    from typer.testing import CliRunner
    from vision_sae_client.cli import app as client

    from vision_sae.cli import app as library

    ours = {"vision-sae": library, "vision-sae-client": client}
    for program, *words in commands(example.parsed):
        assert program in ours, f"{program} is no command of ours: leave the block out, and say why"
        result = CliRunner().invoke(ours[program], words)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, f"{program} {shlex.join(words)}\n{result.output}"


def read_configuration(example: Example) -> None:
    """Read a block ``yaml`` as a configuration."""
    from vision_sae.config import load_config

    path = Path("settings.yaml")
    path.write_text(example.parsed, "utf-8")
    load_config(path)


def parsed(page: Path, shell: Callable[[Example], None] = run_commands) -> Document:
    """A page with its blocks."""
    parsers = [
        SkipParser(),
        PythonCodeBlockParser(),
        CodeBlockParser("sh", shell),
        CodeBlockParser("yaml", read_configuration),
    ]
    return Sybil(parsers, filenames=[page.name], path=str(page.parent)).parse(page)


class Counts(NamedTuple):
    """How many blocks of all pages a test runs, and how many are left out with a reason."""

    run: int
    left_out: int


def count() -> Counts:
    """Count the blocks without running one."""
    blocks = left_out = 0
    for page in pages():
        for example in parsed(page).examples():
            if isinstance(example.region.evaluator, Skipper):
                left_out += 1
            else:
                blocks += 1
    return Counts(blocks - left_out, left_out)


def languages(page: Path) -> list[str]:
    """The language of every fenced block of a page, also of those that nothing runs."""
    fences = re.findall(r"(?m)^ *(`{3,}|~{3,})(.*)$", page.read_text("utf-8"))
    return [language.strip() for _, language in fences[::2]]

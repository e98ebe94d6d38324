"""The house itself: how large the code is, how orderly, how fast to open, how well tested.

``python -m tests.benchmarks.house`` prints JSON. ``--coverage FILE`` names the ``coverage.json`` of
a run of the tests; without it, both shares are null.

==================  ==========================================================================
library_lines       lines of the Python files of the library, the server and the client, no stubs
code_lines          those of them that are code: no blank lines, comments and docstrings
imports_up          imports of a room above the importer's own
circles             modules that import each other in a ring when they are imported
files_to_add        library files that a new kind takes: its own, and every other file that names a
                    kind of the same door, so that a new kind's name would have to be added there
import_ms           what ``import vision_sae`` adds to a bare interpreter, median of several
help_cpu_s          CPU time of ``vision-sae --help`` with bytecode at hand, median of several
coverage            shares of lines and of branches that the tests run
docs_blocks_run     code blocks of README.md and of the site that a test runs
docs_blocks_left    those that no test can run, each with its reason above it
==================  ==========================================================================
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import resource
import statistics
import subprocess
import sys
import time
import tokenize
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tests import rooms
from tests.docs import blocks

_STUBS = "vision_sae.v1"
_RUNS = 7


class Door(NamedTuple):
    """A kind of thing that can be added: where a module each lies, and a name that only one has."""

    folder: str
    telling: frozenset[str]
    """Names of existing kinds that mean nothing else in the code."""


DOORS = {
    "architecture": Door("vision_sae/dictionaries/kinds", frozenset({"matryoshka", "semi_nmf"})),
    "describer": Door("vision_sae/descriptions/describers", frozenset({"caption-pmi"})),
    "model_family": Door("vision_sae/models/families", frozenset({"open_clip-dir"})),
    "format": Door(
        "vision_sae/dictionaries/interop/formats", frozenset({"sparsify", "llamascopium"})
    ),
}
"""What `files_to_add` counts. A file that has one of the telling names as a string of its own (a
table's key, a choice, a comparison) would have to change for a new kind, too. Left out are "milan",
which is a layout of exemplars too, and "torchvision", which is a distribution too."""


def library() -> dict[str, Path]:
    """{module: file} of the library, the server and the client, without stubs."""
    return {
        name: path
        for name, path in rooms.modules().items()
        if not name.startswith((_STUBS, "tools"))
    }


def library_lines() -> int:
    """Lines of all files, blank ones and comments included."""
    return sum(len(path.read_text("utf-8").splitlines()) for path in library().values())


def code_in(source: str) -> int:
    """Lines of a module that hold code: no blank ones, comments and docstrings."""
    words = {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    code = {
        line
        for token in tokens
        if token.type not in silent | {tokenize.ENDMARKER}
        for line in range(token.start[0], token.end[0] + 1)
    }
    return len(code - words)


def code_lines() -> int:
    """Lines of all files that hold code."""
    return sum(code_in(path.read_text("utf-8")) for path in library().values())


def circles() -> int:
    """How many rings of modules there are: at least one where modules import each other."""
    known = rooms.modules()
    edges = {
        name: frozenset(rooms.imported_at_once(path.read_text("utf-8"), known) - {name})
        for name, path in known.items()
    }
    return int(bool(rooms.circle(edges)))


def strings(source: str) -> set[str]:
    """The strings of a module that are no docstrings."""
    tree = ast.parse(source)
    texts = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in texts
    }


def naming(door: Door, files: dict[str, Path], root: Path = rooms.ROOT) -> list[Path]:
    """The files outside of each kind's own that name a kind as a string of the code."""
    found = []
    for path in files.values():
        named = door.telling & strings(path.read_text("utf-8"))
        own = {
            name
            for name in named
            if path.is_relative_to(root / door.folder) and path.stem == name.replace("-", "_")
        }
        if named - own:
            found.append(path)
    return sorted(found)


def import_ms() -> float:
    """Milliseconds that ``import vision_sae`` adds: medians of runs in turns with bare ones."""
    bare, with_import = [], []
    for _ in range(_RUNS + 1):
        bare.append(_seconds("pass"))
        with_import.append(_seconds("import vision_sae"))
    return 1000 * (statistics.median(with_import[1:]) - statistics.median(bare[1:]))


def _seconds(script: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", script], check=True, cwd=rooms.ROOT)
    return time.perf_counter() - start


def help_cpu_s() -> float:
    """Seconds of CPU time, user and system; the first run, which compiles, does not count."""
    words = [sys.executable, "-m", "vision_sae.cli", "--help"]
    return statistics.median([_cpu_seconds(words) for _ in range(_RUNS + 1)][1:])


def _cpu_seconds(words: list[str]) -> float:
    def used() -> float:
        spent = resource.getrusage(resource.RUSAGE_CHILDREN)
        return spent.ru_utime + spent.ru_stime

    before = used()
    subprocess.run(words, check=True, cwd=rooms.ROOT, stdout=subprocess.DEVNULL)
    return used() - before


def coverage(report: Path | None) -> dict[str, float | None]:
    """{line, branch}: shares between 0 and 1, read from coverage's JSON."""
    if report is None:
        return {"line": None, "branch": None}
    totals = json.loads(report.read_text("utf-8"))["totals"]
    return {
        "line": round(totals["covered_lines"] / totals["num_statements"], 4),
        "branch": round(totals["covered_branches"] / totals["num_branches"], 4),
    }


def figures(report: Path | None, tell: Callable[[str], object] = lambda _: None) -> dict[str, Any]:
    """All figures; ``tell`` is told each file that a new kind would have to change."""
    files_to_add = {}
    for kind, door in DOORS.items():
        others = naming(door, library())
        files_to_add[kind] = 1 + len(others)
        for path in others:
            tell(f"{kind}: {path.relative_to(rooms.ROOT)}")
    counted = blocks.count()
    return {
        "library_lines": library_lines(),
        "code_lines": code_lines(),
        "imports_up": len(rooms.imports_up(rooms.imports())),
        "circles": circles(),
        "files_to_add": files_to_add,
        "import_ms": round(import_ms(), 1),
        "help_cpu_s": round(help_cpu_s(), 3),
        "coverage": coverage(report),
        "docs_blocks_run": counted.run,
        "docs_blocks_left": counted.left_out,
    }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--coverage", type=Path, help="coverage.json of a run of the tests")
    arguments = parser.parse_args()
    found = figures(arguments.coverage, lambda line: print(line, file=sys.stderr))
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()

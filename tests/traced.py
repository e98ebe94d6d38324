"""Coverage in CI: which lines and branches of the library some tests run, told at the end.

`make test` measures coverage by pytest-cov where ``CI`` is set. Tracing takes 1.8 times the CPU
time of a test of numbers (Python 3.11; three files of tests/unit), so not every test is traced: the
quick ones in the folders of `TRACED` are. Shares of all tests are thus higher than what is told.
Without coverage nothing here does anything.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

REPORT = Path(__file__).parents[1] / "build" / "coverage.json"
TRACED = (
    *("contract", "service", "unit/bundles", "unit/client"),
    *("unit/ground", "unit/labels", "unit/pictures", "unit/statistics"),
)
"""Folders of tests that are traced."""
_UNTRACED = ("slow", "browser", "bench")
_TESTS = Path(__file__).parent


def _current() -> Any:
    """The measurement that this process was started under, if any."""
    try:
        from coverage import Coverage
    except ImportError:
        return None
    return Coverage.current()


def is_traced(item: pytest.Item) -> bool:
    """Whether a test is quick and in a folder that is traced."""
    quick = not any(map(item.get_closest_marker, _UNTRACED))
    return quick and any(item.path.is_relative_to(_TESTS / folder) for folder in TRACED)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Run a test, traced or not."""
    measured = _current()
    pausing = measured is not None and not is_traced(item)
    if pausing:
        measured.stop()
    try:
        return (yield)
    finally:
        if pausing:
            measured.start()


def told(totals: dict[str, int]) -> str:
    """The line that ends a run: shares of lines and branches that were run."""
    lines = totals["covered_lines"] / max(totals["num_statements"], 1)
    branches = totals["covered_branches"] / max(totals["num_branches"], 1)
    return f"coverage of the traced tests: {lines:.1%} of lines, {branches:.1%} of branches"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell both shares of the report that pytest-cov has written."""
    if terminalreporter.config.getoption("cov_source", None) and REPORT.is_file():
        terminalreporter.write_line(told(json.loads(REPORT.read_text("utf-8"))["totals"]))

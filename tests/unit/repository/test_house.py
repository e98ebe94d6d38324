"""The figures of the house, and coverage in CI."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests import rooms, traced
from tests.benchmarks import house


def test_a_file_that_names_a_kind_would_change_for_another_one(tmp_path: Path) -> None:
    (tmp_path / "kinds").mkdir()
    sources = {
        "kinds/round.py": 'NAME = "round"\n',  # a kind's own file
        "kinds/square.py": 'LIKE = "round"\n',  # names another kind
        "table.py": 'KINDS = {"round": 1}\n',
        "told.py": '"""Of round ones."""\ndef f():\n    "round"\n',  # docstrings are no code
    }
    for name, source in sources.items():
        (tmp_path / name).write_text(source)
    door = house.Door("kinds", frozenset({"round"}))
    files = {name: tmp_path / name for name in sources}
    assert [path.name for path in house.naming(door, files, tmp_path)] == ["square.py", "table.py"]


def test_every_door_is_told_by_names_that_exist() -> None:
    code = set().union(
        *(house.strings(path.read_text("utf-8")) for path in house.library().values())
    )
    for door in house.DOORS.values():
        assert door.telling & (code | {path.stem for path in house.library().values()})


def test_stubs_and_tools_are_not_counted() -> None:
    assert not [name for name in house.library() if name.startswith(("vision_sae.v1", "tools"))]
    assert 0 < house.code_lines() < house.library_lines()


def test_lines_of_code_are_neither_blank_nor_words() -> None:
    source = '"""Of a module."""\n\nx = 1  # why\n# a comment\ny = """a\nb"""\n'
    assert house.code_in(source) == 3  # x, and the two lines of y


def test_coverage_is_read_from_its_report(tmp_path: Path) -> None:
    totals = {"covered_lines": 3, "num_statements": 4, "covered_branches": 1, "num_branches": 2}
    (tmp_path / "coverage.json").write_text(json.dumps({"totals": totals}))
    assert house.coverage(tmp_path / "coverage.json") == {"line": 0.75, "branch": 0.5}
    assert house.coverage(None) == {"line": None, "branch": None}
    assert traced.told(totals).endswith("75.0% of lines, 50.0% of branches")


def test_a_traced_run_tells_its_coverage_and_leaves_slow_tests_out(tmp_path: Path) -> None:
    (tmp_path / "made.py").write_text("def quick():\n    return 1\n\n\ndef late():\n    return 2\n")
    (tmp_path / "test_it.py").write_text(
        "import made, pytest\n\ndef test_quick():\n    made.quick()\n\n"
        "@pytest.mark.slow\ndef test_late():\n    made.late()\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    slow: late\n")
    script = (
        "import sys; sys.path[:0] = [sys.argv[1], '.']; from pathlib import Path\n"
        "from tests import traced; traced.REPORT = Path('build/coverage.json')\n"
        "traced._TESTS, traced.TRACED = Path.cwd(), ('',)\n"
        "import pytest; options = ['-q', '-p', 'no:xdist', '--cov=.', '--cov-branch']\n"
        "options.append('--cov-report=json:build/coverage.json')\n"
        "sys.exit(pytest.main(options, plugins=[traced]))\n"
    )
    (tmp_path / "main.py").write_text(script)
    words = (sys.executable, "main.py", str(rooms.ROOT))
    run = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "coverage of the traced tests: " in run.stdout
    report = json.loads((tmp_path / "build" / "coverage.json").read_text())
    assert report["files"]["made.py"]["missing_lines"] == [6]  # the slow test's line

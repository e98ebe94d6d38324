from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from vision_sae import machine


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a machine that nothing was measured on."""
    path = tmp_path / "cache" / "machine.json"
    monkeypatch.setenv(machine.VARIABLE, str(path))
    monkeypatch.setattr(machine, "_chosen", {})
    return path


def in_seconds(**seconds: float) -> dict[str, Callable[[], float]]:
    return {name: (lambda took=took: took) for name, took in seconds.items()}


def a_new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_chosen", {})


def test_the_fastest_way_is_measured_once_told_and_kept(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert machine.fastest("walking", in_seconds(slow=2, quick=0.001)) == "quick"
    (record,) = caplog.records
    assert "walking" in record.message
    assert "quick (slow 2e+03 ms, quick 1 ms; kept in" in record.message
    a_new_process(monkeypatch)
    assert machine.fastest("walking", in_seconds(slow=0, quick=9)) == "quick"
    assert machine.kept() == {"walking": "quick"}
    assert len(caplog.records) == 1


@pytest.mark.parametrize(("other", "way"), [(2.1, "usual"), (1.9, "other")])
def test_the_usual_way_stays_unless_another_gains_enough(
    file: Path, other: float, way: str
) -> None:
    ways = in_seconds(usual=4, other=other)
    assert machine.fastest("sitting", ways, usual="usual", gain=2) == way


def test_other_ways_and_other_limits_are_measured_anew(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert machine.fastest("flying", in_seconds(a=1, b=2)) == "a"
    assert machine.fastest("flying", in_seconds(a=3, b=2, c=4)) == "b"
    a_new_process(monkeypatch)
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    assert machine.fastest("flying", in_seconds(a=5, b=2)) == "b"
    assert len(json.loads(file.read_text())) == 2


def test_the_first_of_two_processes_decides(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other_process() -> float:
        a_new_process(monkeypatch)
        machine._keep("racing [a, b]", "b")
        return 1.0

    assert machine.fastest("racing", {"a": other_process, "b": lambda: 2.0}) == "b"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"x": 3}', "\udcff"])
def test_a_file_that_cannot_be_read_is_made_anew(file: Path, text: str) -> None:
    file.parent.mkdir()
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert machine.fastest("reading", in_seconds(a=2, b=1)) == "b"
    assert machine.kept() == {"reading": "b"}


def test_without_a_place_the_choice_holds_for_the_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    (tmp_path / "file").write_text("")
    for place in ("off", str(tmp_path / "file" / "machine.json")):
        monkeypatch.setenv(machine.VARIABLE, place)
        a_new_process(monkeypatch)
        assert machine.fastest("waiting", in_seconds(a=1, b=2)) == "a"
        assert machine.fastest("waiting", in_seconds(a=3, b=2)) == "a"
        assert "not kept" in caplog.records[-1].message
        assert machine.kept() == {}

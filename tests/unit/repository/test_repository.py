"""What holds for the repository as a whole: layout, weight, pins and commands."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = ("demo", "test", "lint", "bench", "docs", "proto", "clean", "help")
BUDGET = 80_000_000  # bytes of everything that ships
# Modules and packages that only the library and the server may need.
HEAVY = ("diffusers", "faiss", "gradio", "open_clip", "pyarrow", "timm", "torch", "transformers")
# A folder of somebody's machine, at the start of a word or a string.
MACHINE_PATH = re.compile(r"""(?m)(?:^|[\s"'`=(:])/(?:work|root|home/\w+|Users/\w+)/""")


@cache
def tracked() -> list[Path]:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listing = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    paths = [ROOT / name for name in listing.split("\0") if name]
    return [path for path in paths if path.is_file()]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for text in requirements}


@pytest.mark.parametrize(
    "folder", ["vision_sae", "proto", "server", "client", "tools", "docs", "tests"]
)
def test_every_top_level_folder_says_what_lives_there(folder: str) -> None:
    assert len((ROOT / folder / "README.md").read_text().splitlines()) >= 5


@pytest.mark.parametrize("module", ["vision_sae", "vision_sae_client"])
def test_importing_the_library_and_the_client_is_light(module: str) -> None:
    script = f"import sys, {module}; print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=ROOT
    )
    assert set(run.stdout.split()) & set(HEAVY) == set()


def test_the_base_install_is_light() -> None:
    heavy = re.compile("|".join((*HEAVY, "onnx", "open-clip", "ray", "scipy")))
    assert [name for name in names(PROJECT["dependencies"]) if heavy.match(name)] == []


def test_cpu_and_gpu_differ_in_faiss_alone() -> None:
    # faiss-cpu and faiss-gpu install the same module: no extra may bring the other one along.
    faiss = {
        extra: {name for name in names(EXTRAS[extra]) if name.startswith("faiss")}
        for extra in EXTRAS
    }
    assert faiss.pop("cpu") == {"faiss-cpu"}
    assert faiss.pop("gpu") == {"faiss-gpu"}
    assert set().union(*faiss.values()) == set()
    rest = [names(EXTRAS[extra]) - {f"faiss-{extra}"} for extra in ("cpu", "gpu")]
    assert rest[0] == rest[1]


def test_constraints_are_exact_and_sorted() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = [line for line in lines if not line.startswith("#")]
    assert [line for line in pinned if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []
    assert pinned == sorted(pinned, key=lambda line: line.split("==")[0].lower())


def test_constraints_pin_everything_we_ask_for_within_its_range() -> None:
    pinned = {canonicalize_name(name): version for name, version in pins().items()}
    unpinned = {"ray", "vision-sae"}
    asked = [
        requirement
        for text in [*PROJECT["dependencies"], *(r for extra in EXTRAS.values() for r in extra)]
        if canonicalize_name((requirement := Requirement(text)).name) not in unpinned
    ]
    assert [
        str(requirement)
        for requirement in asked
        if (name := canonicalize_name(requirement.name)) not in pinned
        or not requirement.specifier.contains(pinned[name], prereleases=True)
    ] == []


def test_the_repository_stays_within_its_size() -> None:
    sizes = {path: path.stat().st_size for path in tracked()}
    largest = sorted(sizes, key=lambda path: -sizes[path])[:5]
    assert sum(sizes.values()) <= BUDGET, [str(path.relative_to(ROOT)) for path in largest]


@pytest.mark.parametrize(
    ("text", "found"),
    [("data = '/home/ana/x'", True), ("see /root/y", True), ("models/work/z", False)],
)
def test_a_path_of_a_machine_is_recognised(text: str, found: bool) -> None:
    assert bool(MACHINE_PATH.search(text)) is found


def test_no_file_names_a_path_of_somebodys_machine() -> None:
    named = []
    for path in tracked():
        content = path.read_bytes()
        if path == Path(__file__) or b"\0" in content[:8192]:
            continue
        if MACHINE_PATH.search(content.decode(errors="replace")):
            named.append(str(path.relative_to(ROOT)))
    assert named == []


@pytest.mark.parametrize("target", TARGETS)
def test_make_has_the_target(target: str) -> None:
    assert re.search(rf"(?m)^{target}:.* ## \w", MAKEFILE)
    if shutil.which("make"):
        run = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr


def test_make_alone_lists_the_targets() -> None:
    if not shutil.which("make"):
        pytest.skip("no make")
    shown = subprocess.run(["make"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert {line.split()[0] for line in shown.splitlines()} >= set(TARGETS)


def test_ci_runs_what_a_person_runs() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    text = script.read_text()
    assert "set -euo pipefail" in text
    assert "export CI=true" in text
    assert re.search(r"(?m)^make test\b", text)
    assert re.search(r"(?m)^make .*\blint\b", text)


def test_every_make_command_of_the_readme_exists() -> None:
    readme = (ROOT / "README.md").read_text()
    wanted = set(re.findall(r"(?m)(?:^|`)make ([a-z]+)", readme))
    assert wanted - set(re.findall(r"(?m)^([a-z-]+):", MAKEFILE)) == set()


def test_training_needs_neither_a_model_nor_its_libraries() -> None:
    """Their imports take longer than that of torch."""
    script = "import sys, vision_sae.dictionaries.pipeline; print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=ROOT
    )
    assert not set(run.stdout.split()) & {"torchvision", "timm", "open_clip", "transformers"}

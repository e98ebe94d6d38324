"""What is published: an sdist and a wheel, which work away from the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import NamedTuple

import numpy
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import vision_sae
from vision_sae.version import CODE_VERSION, build

ROOT = Path(__file__).parents[3]
MOST_BYTES = 100_000_000
"""Of the wheel."""
SITE_PACKAGES = Path(numpy.__file__).parents[1]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class Built(NamedTuple):
    """What `build` made."""

    wheel: Path
    sdist: Path
    commit: str
    data: set[str]
    """Every file of the packages that git knows, stubs and weights included."""


def run(*words: str | Path, cwd: Path, **variables: str) -> str:
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [*map(str, words)], cwd=cwd, capture_output=True, text=True, env=clean | variables
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A wheel made from an sdist, which was made from a clone with the changes of this checkout."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    source, out = tmp_path_factory.mktemp("source") / "clone", tmp_path_factory.mktemp("dist")
    run("git", "clone", "--quiet", "--shared", ROOT, source, cwd=ROOT)
    for name in run("git", "diff", "--name-only", "HEAD", cwd=ROOT).splitlines():
        (source / name).unlink(missing_ok=True)
        if (ROOT / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, source / name)
    described = ("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    commit = run("git", *described, cwd=source).strip()
    known = run("git", "ls-files", "vision_sae", "server", "client", cwd=source).splitlines()
    packages = ("vision_sae/", "server/vision_sae_server/", "client/vision_sae_client/")
    data = {
        name.removeprefix("server/").removeprefix("client/")
        for name in known
        if name.startswith(packages) and (source / name).exists()
    }
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, cwd=source)
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return Built(wheel, sdist, commit, data)


def test_the_wheel_is_sound_and_small(built: Built) -> None:
    run(sys.executable, "-m", "twine", "check", "--strict", built.wheel, built.sdist, cwd=ROOT)
    run(sys.executable, "-m", "check_wheel_contents", built.wheel, cwd=ROOT)
    assert built.wheel.stat().st_size < MOST_BYTES


def test_the_wheel_holds_the_packages_and_nothing_else(built: Built) -> None:
    names = {name for name in zipfile.ZipFile(built.wheel).namelist() if ".dist-info/" not in name}
    assert names == built.data | {"vision_sae/_commit.txt"}


def test_the_sdist_holds_what_the_wheel_is_made_of(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"setup.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE"} <= names
    assert not [name for name in names if name.startswith(("tests/", "tools/", "docs/"))]


def needed(requirements: Iterable[str]) -> set[str]:
    """The distributions that requirements ask for, those of theirs included."""
    found: set[str] = set()
    asked = [Requirement(text) for text in requirements]
    while asked:
        requirement = asked.pop()
        name = canonicalize_name(requirement.name)
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        try:
            asked += map(Requirement, distribution(name).requires or [])
        except PackageNotFoundError:  # of another platform
            continue
        found.add(name)
    return found


def clean_environment(folder: Path, wheel: Path) -> Path:
    """A virtual environment with the wheel alone; its interpreter."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check")
    run(*pip, "install", "--quiet", "--no-index", "--no-deps", wheel, cwd=folder)
    return python


def site_packages(python: Path) -> Path:
    (found,) = python.parents[1].glob("lib/python*/site-packages")
    return found


def test_the_client_works_with_the_base_install_alone(built: Built, tmp_path: Path) -> None:
    python = clean_environment(tmp_path / "env", built.wheel)
    target = site_packages(python)
    for name in needed(distribution("vision-sae").requires or []):
        for file in distribution(name).files or []:
            top = file.parts[0]
            if top != ".." and not (target / top).exists():
                (target / top).symlink_to(SITE_PACKAGES / top)
    script = "import vision_sae, vision_sae_client; print(vision_sae_client.__file__)"
    loaded = run(python, "-c", script, cwd=tmp_path)
    assert loaded.startswith(str(target))
    assert "attribute" in run(python.with_name("vision-sae-client"), "--help", cwd=tmp_path)
    shown = run(python.with_name("vision-sae"), "--version", cwd=tmp_path)
    assert shown.strip() == f"{CODE_VERSION} ({built.commit})"


FIRST_STEPS = """
import vision_sae
from vision_sae.cli import app
from vision_sae.demo import CORPUS

store, dictionary, bundle = "runs/store", "runs/dictionary", "runs/bundle"
for words in (
    ["harvest", str(CORPUS / "heldout"), store, "--limit", "12"],
    ["train", store, dictionary, "--steps", "5", "--expansion", "1", "--batch-size", "256"],
    ["build", store, dictionary, bundle, "--config", "settings.yaml"],
    ["describe", bundle, "--describer", "caption-pmi", "--config", "settings.yaml"],
):
    assert not app(words, standalone_mode=False)
assert vision_sae.load_dictionary("demo:clip/blocks.10.update").descriptions
print(vision_sae.__file__)
"""


def test_the_library_makes_a_bundle_away_from_the_checkout(built: Built, tmp_path: Path) -> None:
    python = clean_environment(tmp_path / "env", built.wheel)
    target = site_packages(python)
    # Added so, the folder's own .pth files are not read: no editable install comes along.
    (target / "others.pth").write_text(f"{SITE_PACKAGES}\n")
    (tmp_path / "settings.yaml").write_text("describe: {metrics: []}\nbuild: {recall_floor: 0}\n")
    said = run(python, "-c", FIRST_STEPS, cwd=tmp_path, HOME=str(tmp_path))
    assert said.splitlines()[-1].startswith(str(target))
    assert (tmp_path / "runs" / "bundle" / "descriptions.jsonl").is_file()


def test_a_checkout_tells_its_version_alone() -> None:
    assert build() == vision_sae.__version__ == CODE_VERSION

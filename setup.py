"""What setuptools cannot be told in pyproject.toml: a build remembers the commit it was made from.

`vision-sae --version` shows it. A build outside of a git checkout remembers none, unless it is made
from an sdist that does.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

ROOT = Path(__file__).resolve().parent
REMEMBERED = Path("vision_sae", "_commit.txt")
"""Where a build keeps its commit; `vision_sae.version` reads it."""


def _git(*words: str) -> str:
    """What git says of this folder; nothing where git or a checkout is missing."""
    try:
        run = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return run.stdout.strip()


def _remember(folder: Path) -> None:
    """Write the commit into what is built in ``folder``, where this is a checkout."""
    top = _git("rev-parse", "--show-toplevel")
    if (
        top and Path(top).resolve() == ROOT
    ):  # not the checkout of another project around this folder
        commit = _git("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
        (folder / REMEMBERED).write_text(f"{commit}\n", "utf-8")


class BuildPy(build_py):
    """Packages of a wheel, with the commit; an editable install has none."""

    def run(self) -> None:
        """Copy the packages."""
        super().run()
        if not self.editable_mode:
            _remember(Path(self.build_lib))


class Sdist(sdist):
    """A source distribution, with the commit."""

    def make_release_tree(self, base_dir: str, files: Sequence[str]) -> None:
        """Copy the sources."""
        super().make_release_tree(base_dir, files)
        _remember(Path(base_dir))


setup(cmdclass={"build_py": BuildPy, "sdist": Sdist})

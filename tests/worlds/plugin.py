"""The example plug-in of ``tests/plugin``, installed beside the library and used from a process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.rooms import ROOT


def install(folder: Path) -> Path:
    """Install the plug-in under ``folder``; returns its folder for PYTHONPATH.

    No environment is touched.
    """
    shutil.copytree(ROOT / "tests" / "plugin", folder / "source")  # a build writes into its source
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"),
            *("--no-build-isolation", "--target", str(folder / "site"), str(folder / "source")),
        ],
        check=True,
    )
    return folder / "site"


def vision_sae(
    site: Path, *arguments: object, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a command of vision-sae in a process that has ``site`` on its path."""
    paths = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "vision_sae.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": paths, "COLUMNS": "200"} | variables,
        check=False,
    )

"""The source packages of the demo corpus, with functions that fetch and unpack them.

Packages come through the ordinary client of their registry (npm, pip, apt) at the versions pinned
here. Fetching needs the network and, for the Debian packages, a Debian 12 machine with apt and
dpkg. The corpus in the repository was made this way.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Registry = Literal["npm", "pypi", "debian"]


@dataclass(frozen=True)
class Package:
    """One pinned source package and the licence of its pictures or names."""

    registry: Registry
    name: str
    version: str
    license: str  # SPDX expression of what the corpus takes from it
    authors: str
    contents: str  # the used part of the package


FLUENT = Package(
    "npm",
    "@lobehub/fluent-emoji-3d",
    "1.1.0",
    "MIT",
    "Microsoft Corporation (Fluent Emoji), packaged by LobeHub",
    "3D emoji pictures, 256 px",
)
NOTO = Package(
    "npm",
    "emoji-datasource-google",
    "16.0.0",
    "Apache-2.0",
    "Google LLC (Noto Emoji), packaged by Cal Henderson (MIT)",
    "emoji pictures, 64 px, enlarged",
)
EMOJIBASE = Package(
    "npm",
    "emojibase-data",
    "17.0.0",
    "MIT",
    "Miles Johnson",
    "English names and tags of the emoji",
)
PHOTOGRAPHS = (
    Package(
        "debian",
        "tuxpaint-stamps-default",
        "2022.06.04-1",
        "GPL-2.0-or-later",
        "Bill Kendrick and the Tux Paint contributors",
        "photographs of single objects, cut out",
    ),
    Package(
        "debian",
        "plasma-workspace-wallpapers",
        "4:5.27.5-2",
        "LGPL-3.0-only",  # as each metadata.json says; Debian's summary says GPL-2.0-or-later
        "KDE Visual Design Group and the photographers listed below",
        "photographs",
    ),
    Package(
        "debian",
        "mate-backgrounds",
        "1.26.0-1",
        "GPL-2.0-or-later",
        "the photographers listed below",
        "photographs",
    ),
    Package(
        "debian",
        "lomiri-wallpapers-16.04",
        "20.04.0-2",
        "CC-BY-4.0 AND CC-BY-SA-4.0 AND CC0-1.0",
        "the photographers listed below",
        "photographs",
    ),
    Package(
        "debian",
        "lomiri-wallpapers-20.04",
        "20.04.0-2",
        "CC-BY-SA-3.0",
        "the photographer listed below",
        "one photograph",
    ),
    Package(
        "debian",
        "palapeli-data",
        "4:22.12.3-1",
        "LicenseRef-public-domain",
        "the photographers listed below",
        "photographs",
    ),
    Package(
        "debian",
        "libjxl-testdata",
        "0.0~git20230110.d6168ff-1",
        "CC0-1.0 AND BSD-3-Clause",
        "contributors to wesaturate; the JPEG XL Project Authors",
        "photographs",
    ),
    Package(
        "debian",
        "puzzle-jigsaw",
        "1.0.2+git20201007.527c529+dfsg-4+b1",
        "CC0-1.0",
        "Pexels photographers",
        "photographs",
    ),
    Package(
        "pypi",
        "scikit-image",
        "0.26.0",
        "CC0-1.0 AND LicenseRef-public-domain",
        "the photographers listed below",
        "photographs of skimage/data",
    ),
)
ALL_PACKAGES = (FLUENT, NOTO, EMOJIBASE, *PHOTOGRAPHS)


def fetch(package: Package, cache: Path) -> Path:
    """Return the folder of the unpacked `package` under `cache`; a missing package is fetched."""
    folder = cache / package.registry / package.name.replace("/", "-")
    # Written last, so that an interrupted download is not taken for a whole package.
    done = folder / f".{package.version}.done"
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        {"npm": _fetch_npm, "pypi": _fetch_wheel, "debian": _fetch_debian}[package.registry](
            package, folder
        )
        done.touch()
    return folder


def _run(*command: str, folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)


def _only(folder: Path, pattern: str) -> Path:
    """The single matching file of `folder`, which the client has just downloaded."""
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise RuntimeError(f"expected one {pattern} in {folder}, found {len(found)}; empty it")
    return found[0]


def _fetch_npm(package: Package, folder: Path) -> None:
    _run("npm", "pack", "--ignore-scripts", f"{package.name}@{package.version}", folder=folder)
    with tarfile.open(_only(folder, "*.tgz")) as archive:
        archive.extractall(folder, filter="data")


def _fetch_wheel(package: Package, folder: Path) -> None:
    pinned = f"{package.name}=={package.version}"
    pip = (sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:")
    _run(*pip, pinned, folder=folder)
    with zipfile.ZipFile(_only(folder, "*.whl")) as wheel:
        wheel.extractall(folder)


def _fetch_debian(package: Package, folder: Path) -> None:
    _run("apt-get", "download", f"{package.name}={package.version}", folder=folder)
    _run("dpkg-deb", "-x", str(_only(folder, "*.deb")), ".", folder=folder)

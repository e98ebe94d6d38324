"""What this machine and this installation are, for a report of a fault.

Nothing personal is told: messages of errors lose their paths, and neither users, machines nor the
environment are named. All of it works where packages are missing or broken: they are imported in a
process of their own, which may end as it likes.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import vision_sae
from vision_sae.demo.wheels import WHEELS
from vision_sae.errors import VisionSaeError
from vision_sae.files import MANIFEST, read_json, sha256_file, verify_files
from vision_sae.memory import available

PACKAGES = {
    "torch": "torch",
    "torchvision": "torchvision",
    "timm": "timm",
    "open_clip_torch": "open_clip",
    "diffusers": "diffusers",
    "transformers": "transformers",
    "huggingface-hub": "huggingface_hub",
    "faiss-cpu": "faiss",
    "faiss-gpu": "faiss",
    "numba": "numba",
    "safetensors": "safetensors",
    "pyarrow": "pyarrow",
    "scikit-learn": "sklearn",
    "scipy": "scipy",
    "sqlalchemy": "sqlalchemy",
    "pydantic": "pydantic",
    "protovalidate": "protovalidate",
    "grpcio": "grpc",
    "protobuf": "google.protobuf",
    "numpy": "numpy",
    "pillow": "PIL",
}
"""The main packages by distribution, and what is imported of each."""
CPU_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "asimd")
"""What decides how fast models run on a CPU, as the kernel calls it."""
WHOLE, MISSING = "whole", "not installed"
_DEMO = Path(vision_sae.__file__).parent / "demo"
_SUMS = _DEMO / "SHA256SUMS"
"""The hashes of the weights that are part of the package, as ``sha256sum`` writes them."""
_IMPORT = """
import importlib, sys
for name in sys.argv[1:]:
    print(name, flush=True)
    try:
        importlib.import_module(name)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}".replace("\\n", " "), flush=True)
    else:
        print(flush=True)
"""
_DEVICES = """
import torch
for i in range(torch.cuda.device_count()):
    found = torch.cuda.get_device_properties(i)
    print(f"cuda:{i} {found.name}, {found.total_memory / 1e9:.0f} GB")
if torch.backends.mps.is_available():
    print("mps")
"""
_IMPORT_SECONDS = 300


def diagnose() -> dict[str, Any]:
    """Everything there is to tell, in plain values that JSON can hold."""
    return {
        "vision_sae": vision_sae.__version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": os.cpu_count(),
        "cpu_features": _cpu_features(),
        "memory_free": _gigabytes(available()),
        "disk_free": {
            "working directory": _gigabytes(_disk_free(Path.cwd())),
            "temporary files": _gigabytes(_disk_free(Path(tempfile.gettempdir()))),
        },
        "devices": ["cpu", *_devices()],
        "packages": _packages(),
        "extras": _extras(),
        "demo": {wheel.distribution: wheel.fault() or WHOLE for wheel in WHEELS} | _weights(),
    }


def faults(found: dict[str, Any]) -> list[str]:
    """The names of what is installed and broken, of what `diagnose` found."""
    packages, demo = found["packages"], found["demo"]
    broken = [name for name, state in packages.items() if state.startswith("broken")]
    return broken + [name for name, state in demo.items() if state not in (WHOLE, MISSING)]


def _gigabytes(count: int | None) -> str:
    return "unknown" if count is None else f"{count / 1e9:.1f} GB"


def _disk_free(place: Path) -> int | None:
    try:
        return shutil.disk_usage(place).free
    except OSError:
        return None


def _cpu_features() -> list[str]:
    """Those of `CPU_FEATURES` that the kernel tells of."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    rows = (line.split() for line in lines if line.startswith(("flags", "Features")))
    flags = set(next(rows, []))
    return [feature for feature in CPU_FEATURES if feature in flags]


def without_paths(text: str) -> str:
    """A message in which of each path only the last part is left: the rest may name a person."""
    return re.sub(r"(?:[A-Za-z]:)?(?:[/\\\\][^/\\\\:'\"]+)+[/\\\\]|~[/\\\\]", "", text)


def _python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a process of its own, without a word on its stderr."""
    command = [sys.executable, "-W", "ignore", "-c", code, *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            output, _ = process.communicate(timeout=_IMPORT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
    return subprocess.CompletedProcess(command, process.returncode, output)


def import_faults(modules: Sequence[str]) -> dict[str, str]:
    """What goes wrong when each of these is imported; empty where nothing does."""
    found: dict[str, str] = {}
    while left := [module for module in modules if module not in found]:
        ended = _python(_IMPORT, *left)
        lines = iter(ended.stdout.splitlines())
        for module in lines:
            found[module] = without_paths(next(lines, _end(ended.returncode)))
        found.setdefault(left[0], _end(ended.returncode))
    return found


def _end(status: int) -> str:
    """How a process ended that did not get to say so."""
    return f"ended by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"


def _packages() -> dict[str, str]:
    """{distribution: its version, or what is wrong with it}"""
    versions = {name: _version(name) for name in PACKAGES}
    installed = [name for name, found in versions.items() if found]
    wrong = import_faults(list(dict.fromkeys(PACKAGES[name] for name in installed)))
    states: dict[str, str] = {}
    for name, found in versions.items():
        fault = wrong.get(PACKAGES[name], "") if found else ""
        states[name] = f"broken: {found}, {fault}" if fault else found or MISSING
    return states


def _version(name: str) -> str:
    """The version of a distribution; empty where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _devices() -> list[str]:
    """The accelerators that torch sees."""
    return _python(_DEVICES).stdout.splitlines()


def _extras() -> dict[str, str]:
    """{extra: whether all that it asks for is there, or what is not}"""
    wanted: dict[str, list[str]] = {}
    for extra, name in _requirements():
        wanted.setdefault(extra, []).append(name)
    return {
        extra: ", ".join(f"lacks {name}" for name in names if not _version(name)) or "installed"
        for extra, names in wanted.items()
    }


def _requirements() -> Iterator[tuple[str, str]]:
    """(extra, distribution) of each requirement of an extra, but for those on other extras."""
    try:
        lines = requires("vision-sae") or []
    except PackageNotFoundError:  # it runs from its sources
        return
    for line in lines:
        name = re.match(r"[A-Za-z0-9._-]+", line)
        extra = re.search(r"""extra == ['"]([^'"]+)['"]""", line)
        if name and extra and name[0] != "vision-sae":
            yield extra[1], name[0]


def _weights() -> dict[str, str]:
    """Whether the weights and dictionaries that are part of the package are whole."""
    return {"weights": _weights_fault() or WHOLE, "dictionaries": _dictionaries_fault() or WHOLE}


def _weights_fault() -> str:
    try:
        rows = [line.split(maxsplit=1) for line in _SUMS.read_text().splitlines()]
        wrong = [name for digest, name in rows if sha256_file(_DEMO / name) != digest]
    except (OSError, ValueError) as error:
        return without_paths(str(error))
    return f"{wrong[0]} is not the file of the package" if wrong else ""


def _dictionaries_fault() -> str:
    from vision_sae.dictionaries.released.registry import locate, shipped

    try:
        for name in shipped():
            place = locate(name)
            verify_files(place, read_json(place / MANIFEST)["files"])
    except (OSError, VisionSaeError) as error:
        return without_paths(str(error))
    return ""

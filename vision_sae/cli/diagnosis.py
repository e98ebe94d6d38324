"""Facts about this machine and this installation, for bug reports.

The facts contain nothing personal: paths are cut from messages of errors, and users, machines and
the environment are not named. Missing and broken packages do no harm: packages are imported in a
separate process, which may crash.
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
from vision_sae import machine
from vision_sae.devices import shown
from vision_sae.errors import VisionSaeError
from vision_sae.files import MANIFEST, read_json, sha256_file, verify_files
from vision_sae.memory import available
from vision_sae.models.embedded.wheels import WHEELS
from vision_sae.version import CODE_VERSION

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
"""{distribution of a main package: the module to import}"""
CPU_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "asimd")
"""CPU features that decide the speed of models, by the kernel's names."""
WHOLE, MISSING = "whole", "not installed"
_WEIGHTS = Path(vision_sae.__file__).parent / "models" / "embedded" / "weights"
_SUMS = _WEIGHTS / "SHA256SUMS"
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
_ACCELERATORS = """
from vision_sae.devices import available
for device in available()[1:]:
    print(device)
"""
_IMPORT_SECONDS = 300


def diagnose() -> dict[str, Any]:
    """All facts, in values that JSON can hold."""
    return {
        "vision_sae": CODE_VERSION,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": os.cpu_count(),
        "cpu_features": _cpu_features(),
        "memory_free": _gigabytes(available()),
        "disk_free": {
            "working directory": _gigabytes(_disk_free(Path.cwd())),
            "temporary files": _gigabytes(_disk_free(Path(tempfile.gettempdir()))),
        },
        "devices": [shown("cpu"), *_accelerators()],
        "measured": machine.kept(),
        "packages": _packages(),
        "extras": _extras(),
        "demo": {wheel.distribution: wheel.fault() or WHOLE for wheel in WHEELS} | _weights(),
    }


def faults(report: dict[str, Any]) -> list[str]:
    """The names of installed but broken parts in a report of `diagnose`."""
    packages, demo = report["packages"], report["demo"]
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
    """The `CPU_FEATURES` that the kernel lists."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    rows = (line.split() for line in lines if line.startswith(("flags", "Features")))
    flags = set(next(rows, []))
    return [feature for feature in CPU_FEATURES if feature in flags]


def without_paths(text: str) -> str:
    """A message with each path cut to its last part, because the rest may name a person."""
    return re.sub(r"(?:[A-Za-z]:)?(?:[/\\\\][^/\\\\:'\"]+)+[/\\\\]|~[/\\\\]", "", text)


def _python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a separate Python process; its stderr is discarded."""
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
    """{module: error of its import}; the error is empty for a module that imports."""
    errors: dict[str, str] = {}
    while left := [module for module in modules if module not in errors]:
        ended = _python(_IMPORT, *left)
        lines = iter(ended.stdout.splitlines())
        for module in lines:
            errors[module] = without_paths(next(lines, _end(ended.returncode)))
        errors.setdefault(left[0], _end(ended.returncode))
    return errors


def _end(status: int) -> str:
    """The way a crashed process ended."""
    return f"ended by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"


def _packages() -> dict[str, str]:
    """{distribution: its version, or its fault}"""
    versions = {name: _version(name) for name in PACKAGES}
    installed = [name for name, installed_version in versions.items() if installed_version]
    wrong = import_faults(list(dict.fromkeys(PACKAGES[name] for name in installed)))
    states: dict[str, str] = {}
    for name, installed_version in versions.items():
        fault = wrong.get(PACKAGES[name], "") if installed_version else ""
        states[name] = (
            f"broken: {installed_version}, {fault}" if fault else installed_version or MISSING
        )
    return states


def _version(name: str) -> str:
    """The version of a distribution; empty if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _accelerators() -> list[str]:
    """The devices beside the CPU, or none where torch is missing or broken."""
    return _python(_ACCELERATORS).stdout.splitlines()


def _extras() -> dict[str, str]:
    """{extra: "installed", or the missing distributions}"""
    wanted: dict[str, list[str]] = {}
    for extra, name in _requirements():
        wanted.setdefault(extra, []).append(name)
    return {
        extra: ", ".join(f"lacks {name}" for name in names if not _version(name)) or "installed"
        for extra, names in wanted.items()
    }


def _requirements() -> Iterator[tuple[str, str]]:
    """(extra, distribution) of each requirement of an extra, except requirements on other
    extras."""
    try:
        lines = requires("vision-sae") or []
    except PackageNotFoundError:  # the package runs from its sources
        return
    for line in lines:
        name = re.match(r"[A-Za-z0-9._-]+", line)
        extra = re.search(r"""extra == ['"]([^'"]+)['"]""", line)
        if name and extra and name[0] != "vision-sae":
            yield extra[1], name[0]


def _weights() -> dict[str, str]:
    """Whether the weights and dictionaries of the package are undamaged."""
    return {"weights": _weights_fault() or WHOLE, "dictionaries": _dictionaries_fault() or WHOLE}


def _weights_fault() -> str:
    try:
        rows = [line.split(maxsplit=1) for line in _SUMS.read_text().splitlines()]
        wrong = [name for digest, name in rows if sha256_file(_WEIGHTS / name) != digest]
    except (OSError, ValueError) as error:
        return without_paths(str(error))
    return f"{wrong[0]} is not the file of the package" if wrong else ""


def _dictionaries_fault() -> str:
    from vision_sae.dictionaries.released.lookup import locate, shipped

    try:
        for name in shipped():
            place = locate(name)
            verify_files(place, read_json(place / MANIFEST)["files"])
    except (OSError, VisionSaeError) as error:
        return without_paths(str(error))
    return ""

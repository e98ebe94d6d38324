"""Ways of computing that are measured once on a machine, and kept.

Which of several ways is the fastest depends on the CPU, not on its name. `fastest` measures the
ways once and keeps the choice in a file, so that all processes of a machine choose alike and a run
that is resumed computes as before. ``VISION_SAE_MACHINE`` names another file, or is ``off``: then
each process measures for itself.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from vision_sae.devices import device_name
from vision_sae.files import replacing
from vision_sae.version import CODE_VERSION

VARIABLE = "VISION_SAE_MACHINE"
_LIMITS = (
    "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS", "NUMBA_CPU_FEATURES", "NUMBA_CPU_NAME",
    "ONEDNN_MAX_CPU_ISA",
)  # fmt: skip
"""Variables that keep libraries from instructions of the CPU."""
_LOG = logging.getLogger(__name__)
_chosen: dict[str, str] = {}
"""{what: way} of this process."""
_LOCK = threading.RLock()


def fastest(
    what: str,
    ways: Mapping[str, Callable[[], float]],
    *,
    usual: str | None = None,
    gain: float = 1.0,
) -> str:
    """The fastest way of doing ``what`` on this machine.

    Each way is a function that does the work and returns its seconds. With ``usual``, another way
    is taken only if it is ``gain`` times as fast as the usual one. The ways are not called if the
    choice is kept from before.
    """
    key = f"{what} [{', '.join(ways)}]"
    with _LOCK:
        if key not in _chosen:
            way = _read().get(_machine(), {}).get(key)
            if way is None or way not in ways:
                way = _measured(what, key, ways, usual, gain)
            _chosen[key] = way
        return _chosen[key]


def kept() -> dict[str, str]:
    """{what: way} of this machine, from the file."""
    choices = _read().get(_machine(), {})
    return {key.partition(" [")[0]: way for key, way in choices.items()}


def _measured(
    what: str,
    key: str,
    ways: Mapping[str, Callable[[], float]],
    usual: str | None,
    gain: float,
) -> str:
    """Measure, keep and tell the fastest way."""
    seconds = {name: work() for name, work in ways.items()}
    way = min(seconds, key=seconds.__getitem__)
    if usual is not None and seconds[usual] < gain * seconds[way]:
        way = usual
    figures = ", ".join(f"{name} {1e3 * took:.3g} ms" for name, took in seconds.items())
    way, place = _keep(key, way)
    _LOG.info("%s on %s: %s (%s; %s)", what, device_name("cpu"), way, figures, place)
    return way


def _keep(key: str, way: str) -> tuple[str, str]:
    """(way, where it is kept). Where another process was first, the way is the other's."""
    path = _path()
    if path is None:
        return way, "not kept"
    choices = _read()
    of_machine = choices.setdefault(_machine(), {})
    way = of_machine.setdefault(key, way)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(choices, indent=1, sort_keys=True) + "\n")
    except OSError as error:
        return way, f"not kept: {error}"
    return way, f"kept in {path}"


def _path() -> Path | None:
    """The file; None if nothing is kept."""
    named = os.environ.get(VARIABLE)
    if named == "off":
        return None
    if named:
        return Path(named)
    caches = os.environ.get("XDG_CACHE_HOME")
    return (Path(caches) if caches else Path.home() / ".cache") / "vision_sae" / "machine.json"


def _read() -> dict[str, dict[str, str]]:
    """{machine: {key: way}}; empty if the file cannot be read."""
    path = _path()
    try:
        choices: Any = json.loads(path.read_text("utf-8")) if path else {}
        return {machine: dict(ways) for machine, ways in choices.items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        if not isinstance(error, FileNotFoundError):
            _LOG.debug("%s is not read: %s", path, error)
        return {}


@cache
def _instructions() -> str:
    """The instructions of the CPU, as the system names them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux: the name of the CPU has to do
        return ""
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _machine() -> str:
    """What decides how fast this process can compute: CPU, cores, libraries and their limits."""
    import torch

    limits = {name: os.environ[name] for name in _LIMITS if name in os.environ}
    deciding = (
        device_name("cpu"), _instructions(), torch.get_num_threads(), torch.__version__,
        CODE_VERSION, sorted(limits.items()),
    )  # fmt: skip
    digest = hashlib.sha256(json.dumps(deciding).encode()).hexdigest()[:12]
    return f"{device_name('cpu')}, {torch.get_num_threads()} threads, {digest}"

"""How much memory there is, and what becomes of what a process has freed."""

from __future__ import annotations

import ctypes
from pathlib import Path

from vision_sae.errors import InvalidInputError

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
"""Parameters of glibc's ``mallopt``, by the numbers of its malloc.h."""
_KEPT = {
    _MMAP_THRESHOLD: 32 << 20,  # the most it takes; larger blocks still come and go alone
    _TRIM_THRESHOLD: 1 << 30,
    _TOP_PAD: 64 << 20,  # as large as the heap of a thread, which is then never given back
}

_CONTROL_GROUP = Path("/sys/fs/cgroup")
"""Where a container finds its own limits."""


def keep_freed_memory() -> bool:
    """Have this process keep the memory that one pass of a model frees for the next one.

    By itself glibc gives large blocks back to the system and asks for them again, and the system
    fills each page with zeros: thousands of page faults a picture where threads run a model each.
    The price is that the process stays as large as it once was. Returns False, and changes
    nothing, where the C library is another.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    return all([mallopt(parameter, value) for parameter, value in _KEPT.items()])


def available() -> int | None:
    """Bytes that processes may still take: what the system has, within the limit of the container
    that this runs in. None where the system does not say."""
    free = _entry(Path("/proc/meminfo"), "MemAvailable:")
    if free is None:
        return None
    limit, used = (_number(_CONTROL_GROUP / name) for name in ("memory.max", "memory.current"))
    if limit is None or used is None:
        return free * 1024
    cached = _entry(_CONTROL_GROUP / "memory.stat", "inactive_file") or 0  # given back when needed
    return min(free * 1024, max(0, limit - used + cached))


def _entry(path: Path, name: str) -> int | None:
    """The number behind ``name`` in a file of the system; None where it has none."""
    try:
        rows = (line.split() for line in path.read_text().splitlines())
        return next((int(row[1]) for row in rows if row[:1] == [name]), None)
    except (OSError, ValueError, IndexError):
        return None


def _number(path: Path) -> int | None:
    """The number that a file of the system holds; None where there is no such file, or no limit."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def check_available(needed: int, what: str, *, field: str) -> None:
    """Refuse, before it begins, what takes more memory than there is.

    ``needed`` are the bytes that ``what`` takes at the very least.
    """
    free = available()
    if free is not None and needed > free:
        raise InvalidInputError(
            f"{what} takes at least {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are "
            "free; choose something smaller, or end other programs",
            field=field,
        )

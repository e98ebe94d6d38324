"""Free memory: how much the system has, and whether a process keeps what it has freed."""

from __future__ import annotations

import ctypes
from pathlib import Path

from vision_sae.errors import InvalidInputError

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
"""Parameters of glibc's ``mallopt``, by the numbers of its malloc.h."""
_KEPT = {
    _MMAP_THRESHOLD: 32 << 20,  # glibc's maximum; larger blocks are still mapped one by one
    _TRIM_THRESHOLD: 1 << 30,
    _TOP_PAD: 64 << 20,  # the size of a thread's heap, which is therefore never released
}

_CONTROL_GROUP = Path("/sys/fs/cgroup")
"""Where a container finds its own limits."""


def keep_freed_memory() -> bool:
    """Have this process keep the memory that a forward pass frees, for the next pass.

    By default glibc returns large blocks to the system and requests them again, and the system
    zeroes each page: thousands of page faults a picture where each thread runs a model. The price
    is that the process never shrinks. Returns False, and changes nothing, when the C library is
    not glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    return all([mallopt(parameter, value) for parameter, value in _KEPT.items()])


def available() -> int | None:
    """Bytes of memory that processes may still allocate, within the limit of the container; None
    when the system does not report them."""
    free = _entry(Path("/proc/meminfo"), "MemAvailable:")
    if free is None:
        return None
    limit, used = (_number(_CONTROL_GROUP / name) for name in ("memory.max", "memory.current"))
    if limit is None or used is None:
        return free * 1024
    # The system reclaims inactive file pages when memory is needed.
    cached = _entry(_CONTROL_GROUP / "memory.stat", "inactive_file") or 0
    return min(free * 1024, max(0, limit - used + cached))


def _entry(path: Path, name: str) -> int | None:
    """The number behind ``name`` in a file of the system; None when the file lacks it."""
    try:
        rows = (line.split() for line in path.read_text().splitlines())
        return next((int(row[1]) for row in rows if row[:1] == [name]), None)
    except (OSError, ValueError, IndexError):
        return None


def _number(path: Path) -> int | None:
    """The number that a file of the system holds; None without such a file or number."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def check_available(needed: int, what: str, *, field: str) -> None:
    """Raise `InvalidInputError` when less than ``needed`` bytes of memory are free.

    ``what`` names the work that needs them, for the message.
    """
    free = available()
    if free is not None and needed > free:
        raise InvalidInputError(
            f"{what} takes at least {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are "
            "free; choose something smaller, or end other programs",
            field=field,
        )

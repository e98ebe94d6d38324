"""How much memory there is, and what becomes of what a process has freed."""

from __future__ import annotations

import ctypes
import os

from vision_sae.errors import InvalidInputError

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
"""Parameters of glibc's ``mallopt``, by the numbers of its malloc.h."""
_KEPT = {
    _MMAP_THRESHOLD: 32 << 20,  # the most it takes; larger blocks still come and go alone
    _TRIM_THRESHOLD: 1 << 30,
    _TOP_PAD: 64 << 20,  # as large as the heap of a thread, which is then never given back
}


def check_room(size: int, what: str, field: str) -> None:
    """Raise `InvalidInputError` for ``size`` bytes that this machine could not hold if nothing else
    ran; ``field`` is what asks for them."""
    if not hasattr(os, "sysconf"):  # not on Windows
        return
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size > there:
        raise InvalidInputError(
            f"{what} needs {size / 1e9:,.1f} GB of memory, this machine has {there / 1e9:,.1f}; "
            f"lower {field}",
            field=field,
        )


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

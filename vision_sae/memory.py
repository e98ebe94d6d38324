"""What becomes of memory that a process has freed."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
"""Parameters of glibc's ``mallopt``, by the numbers of its malloc.h."""
_KEPT = {
    _MMAP_THRESHOLD: 32 << 20,  # the most it takes; larger blocks still come and go alone
    _TRIM_THRESHOLD: 1 << 30,
    _TOP_PAD: 64 << 20,  # as large as the heap of a thread, which is then never given back
}


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

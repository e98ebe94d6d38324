"""Processes that work for another one."""

from __future__ import annotations

import multiprocessing
import threading


def orphaned() -> threading.Event:
    """Set when the process that started this one is gone: nobody waits for its work any more.

    Never set in a process that `multiprocessing` did not start.
    """
    gone, parent = threading.Event(), multiprocessing.parent_process()

    def watch() -> None:
        if parent:
            parent.join()
            gone.set()

    threading.Thread(target=watch, name="parent", daemon=True).start()
    return gone

"""Worker processes."""

from __future__ import annotations

import multiprocessing
import threading


def orphaned() -> threading.Event:
    """An event that is set when the parent process has ended, so that nobody waits for the results.

    The event is never set in a process that `multiprocessing` did not start.
    """
    gone, parent = threading.Event(), multiprocessing.parent_process()

    def watch() -> None:
        if parent:
            parent.join()
            gone.set()

    threading.Thread(target=watch, name="parent", daemon=True).start()
    return gone

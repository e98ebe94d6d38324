"""Where work runs: never on the event loop.

One thread per model (a lane), so a model answers one request at a time and no answer depends on
who else asks; one small pool for decoding pictures; one for index searches.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class Lane:
    """A bounded number of threads for one kind of work."""

    def __init__(self, name: str, threads: int = 1) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self.waiting = 0
        """Works that have been given and are not done."""

    async def run(self, work: Callable[[], T]) -> T:
        """Run ``work`` in the lane. Cancelling the caller drops work that has not started."""
        self.waiting += 1
        try:
            return await asyncio.wrap_future(self._executor.submit(work))
        finally:
            self.waiting -= 1

    def close(self) -> None:
        """Finish what runs, drop what waits."""
        self._executor.shutdown(wait=True, cancel_futures=True)

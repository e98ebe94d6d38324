"""Where work runs: never on the event loop.

One thread per model (a lane), so a model answers one request at a time and no answer depends on
who else asks; one small pool for decoding pictures; one for index searches.
"""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")
Item = TypeVar("Item")
Result = TypeVar("Result")


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


class Batches(Generic[Item, Result]):
    """Items of one kind that wait for a lane are worked on together.

    Nothing waits for company: whatever is there when the lane is free becomes a batch, so a lone
    item costs what it costs alone, and batches grow with the load.
    """

    def __init__(
        self, lane: Lane, work: Callable[[Sequence[Item]], Sequence[Result]], most: int
    ) -> None:
        """``work`` maps up to ``most`` items of one kind to a result each."""
        self._lane, self._work, self._most = lane, work, most
        self._waiting: dict[Hashable, deque[tuple[Item, asyncio.Future[Result]]]]
        self._waiting = defaultdict(deque)
        self._lock = threading.Lock()

    async def run(self, kind: Hashable, item: Item) -> Result:
        """The result of one item. Cancelling the caller drops an item that has not started."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        with self._lock:
            self._waiting[kind].append((item, future))
        try:
            # One turn in the lane for each item; who finds its item done by another does nothing.
            await self._lane.run(lambda: self._turn(kind))
            return await future
        finally:
            future.cancel()

    def _turn(self, kind: Hashable) -> None:
        with self._lock:
            waiting = self._waiting[kind]
            batch = list[tuple[Item, asyncio.Future[Result]]]()
            while waiting and len(batch) < self._most:
                item, future = waiting.popleft()
                if not future.cancelled():
                    batch.append((item, future))
            if not waiting:
                del self._waiting[kind]
        if not batch:
            return
        try:
            results = self._work([item for item, _ in batch])
        except Exception as error:
            for _, future in batch:
                future.get_loop().call_soon_threadsafe(_fail, future, error)
            return
        for (_, future), result in zip(batch, results, strict=True):
            future.get_loop().call_soon_threadsafe(_settle, future, result)


def _settle(future: asyncio.Future[T], result: T) -> None:
    if not future.done():  # its caller may have gone
        future.set_result(result)


def _fail(future: asyncio.Future[T], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)

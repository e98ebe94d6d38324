"""Where work runs: never on the event loop.

A lane per model, a small one for decoding pictures, one for index searches, one for labels.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

import torch

from vision_sae.threads import compute_with

T = TypeVar("T")
Item = TypeVar("Item")
Result = TypeVar("Result")
Answer = TypeVar("Answer")


class Lane:
    """A bounded number of threads for one kind of work."""

    def __init__(self, name: str, threads: int = 1) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self.threads = threads
        self.waiting = 0
        """Works that have been given and are not done."""

    def give(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Have ``work`` done in the lane; cancelled before it starts, it is not done."""
        self.waiting += 1
        try:
            future = asyncio.wrap_future(self._executor.submit(work))
        except RuntimeError:  # closed
            self._leave()
            raise
        future.add_done_callback(lambda _: self._leave())
        return future

    def hand(self, work: Callable[[], None]) -> None:
        """Have ``work`` done that tells for itself when it is done; from any thread."""
        self._executor.submit(work)

    async def run(self, work: Callable[[], T]) -> T:
        """Run ``work`` in the lane. Cancelling the caller drops work that has not started."""
        return await self.give(work)

    def _leave(self) -> None:
        self.waiting -= 1

    def close(self) -> None:
        """Finish what runs, drop what waits."""
        self._executor.shutdown(wait=True, cancel_futures=True)


class ModelLane(Lane):
    """Passes of one model.

    What is given has all cores, one work after another. What may `share` them runs side by side
    under load, with one core each, which gets more done: the threads of one pass wait for each
    other between any two operations, and for whatever else has taken a core from one of them. By
    itself it has all cores too.
    """

    def __init__(self, side_by_side: int = 1) -> None:
        super().__init__("model", side_by_side)
        self._cores = torch.get_num_threads()
        self._entrance = threading.Lock()
        self._places = threading.Semaphore(side_by_side)

    def give(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """See `Lane.give`."""
        return super().give(lambda: self._compute(work, self.threads))

    def share(self, work: Callable[[bool], T]) -> asyncio.Future[T]:
        """As `give`; ``work`` is told whether it has the cores of others beside its own."""
        return super().give(lambda: self._shared(work))

    def _shared(self, work: Callable[[bool], T]) -> T:
        alone = self.threads > 1 and self.waiting == 1
        return self._compute(lambda: work(alone), self.threads if alone else 1)

    def _compute(self, work: Callable[[], T], places: int) -> T:
        with self._entrance:  # who waits for all places is not overtaken by who needs one
            for _ in range(places):
                self._places.acquire()
        try:
            compute_with(self._cores if places == self.threads else 1)
            return work()
        finally:
            compute_with(self._cores)  # what threads to come begin with
            self._places.release(places)


def batch_sizes(most: int) -> list[int]:
    """The sizes that batches of up to ``most`` items have: 1, 2, 4, ... Few, so that each can be
    tried out when a server starts."""
    return [1 << power for power in range(most.bit_length())]


class Batches(Generic[Item, Result, Answer]):
    """Items of one kind that wait for a model are worked on together.

    Nothing waits for company: what is there when a thread of the lane is free becomes a batch, or
    as many as the lane has threads; so a lone item costs what it costs alone, and batches grow with
    the load. Answers of a batch are made one after another in a lane of their own, while the model
    goes on.
    """

    def __init__(
        self,
        lane: ModelLane,
        work: Callable[[Sequence[Item]], Sequence[Result]],
        most: int,
        answering: Lane,
        answer: Callable[[Item, Result], Answer],
    ) -> None:
        """``work`` maps items of one kind, as many as one of the `batch_sizes` up to ``most``, to a
        result each, of which ``answer`` makes the item's answer."""
        self._lane, self._work, self._most = lane, work, most
        self._answering, self._answer = answering, answer
        self._waiting: dict[Hashable, list[tuple[Item, asyncio.Future[Answer]]]] = {}
        self._lock = threading.Lock()

    async def run(self, kind: Hashable, item: Item) -> Answer:
        """The answer to one item. Cancelling the caller drops an item that has not started."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        with self._lock:
            self._waiting.setdefault(kind, []).append((item, future))
        # One turn in the lane for each item. An item that another's turn has done does not wait for
        # its own: each would then do but the one picture that the last one had set free.
        turn = self._lane.share(lambda alone: self._turn(kind, alone))
        turn.add_done_callback(lambda done: done.cancelled() and future.cancel())
        try:
            return await future
        finally:
            future.cancel()
            turn.cancel()

    def _turn(self, kind: Hashable, alone: bool) -> None:
        with self._lock:
            waiting = [w for w in self._waiting.pop(kind, ()) if not w[1].cancelled()]
            if not waiting:
                return
            share = math.ceil(len(waiting) / self._lane.threads)
            # All cores are for a lone item.
            size = 1 if alone else batch_sizes(min(self._most, share))[-1]
            batch, others = waiting[:size], waiting[size:]
            if others:
                self._waiting[kind] = others
        try:
            results = self._work([item for item, _ in batch])
            self._answering.hand(lambda: self._answers(batch, results))
        except Exception as error:
            for _, future in batch:
                future.get_loop().call_soon_threadsafe(_fail, future, error)

    def _answers(
        self, batch: Sequence[tuple[Item, asyncio.Future[Answer]]], results: Sequence[Result]
    ) -> None:
        for (item, future), result in zip(batch, results, strict=True):
            if future.cancelled():
                continue
            loop = future.get_loop()
            try:
                answer = self._answer(item, result)
            except Exception as error:
                loop.call_soon_threadsafe(_fail, future, error)
            else:
                loop.call_soon_threadsafe(_settle, future, answer)


def _settle(future: asyncio.Future[T], result: T) -> None:
    if not future.done():  # its caller may have gone
        future.set_result(result)


def _fail(future: asyncio.Future[T], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)

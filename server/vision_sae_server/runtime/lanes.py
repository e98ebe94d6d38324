"""Thread pools, called lanes, that keep work off the event loop.

There is a lane for each model on the CPU and for each other device, one for decoding pictures, one
for searches, and one for labels.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from typing import Generic, TypeVar

import torch

from vision_sae.threads import compute_with
from vision_sae_server.runtime.devices import computed, computed_in_halves

T = TypeVar("T")
Item = TypeVar("Item")
Result = TypeVar("Result")
Answer = TypeVar("Answer")


class Lane:
    """A fixed number of threads for one kind of work."""

    def __init__(self, name: str, threads: int = 1) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self.threads = threads
        self.waiting = 0
        """Number of submitted tasks that are not done."""

    def submit(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Run ``work`` in the lane. Cancelling the future drops work that has not started."""
        self.waiting += 1
        try:
            future = asyncio.wrap_future(self._executor.submit(computed, work))
        except RuntimeError:  # closed
            self._leave()
            raise
        future.add_done_callback(lambda _: self._leave())
        return future

    def post(self, work: Callable[[], None]) -> None:
        """Run ``work`` in the lane without a future; may be called from any thread."""
        self._executor.submit(work)

    async def run(self, work: Callable[[], T]) -> T:
        """Run ``work`` in the lane. Cancelling the caller drops work that has not started."""
        return await self.submit(work)

    def _leave(self) -> None:
        self.waiting -= 1

    def close(self) -> None:
        """Finish running tasks, and drop waiting ones."""
        self._executor.shutdown(wait=True, cancel_futures=True)


class ModelLane(Lane):
    """The lane of one model's passes.

    Submitted work runs one task at a time on all cores. Under load, shareable work runs in parallel
    with one core per task, which has a higher throughput: the threads of a pass on all cores wait
    for each other between any two operations. A lone shareable task uses all cores, too.

    On a GPU, all models of the device have one lane, whose work runs on a stream of its own.
    """

    def __init__(self, side_by_side: int = 1, device: torch.device | None = None) -> None:
        super().__init__("model", side_by_side)
        self.calls = 0
        """Number of calls that were given to this lane among those of replicas."""
        on_gpu = device is not None and device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if on_gpu else None
        self._cores = torch.get_num_threads()
        self._entrance = threading.Lock()
        self._places = threading.Semaphore(side_by_side)

    @classmethod
    def of(
        cls, device: torch.device, side_by_side: int, lanes: dict[torch.device, ModelLane]
    ) -> ModelLane:
        """The lane of a model on ``device``: on the CPU a new one for ``side_by_side`` passes, else
        the one that ``lanes`` has for the device, or a new one that is entered there."""
        if device.type == "cpu":
            return cls(side_by_side)
        if device not in lanes:
            lanes[device] = cls(device=device)
        return lanes[device]

    def submit(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Run ``work`` alone, on all cores; see `Lane.submit`."""
        return super().submit(lambda: self._compute(work, self.threads))

    def share(self, work: Callable[[bool], T]) -> asyncio.Future[T]:
        """Run ``work`` beside other shareable work; its argument says whether it has all cores."""
        return super().submit(lambda: self._shared(work))

    def _shared(self, work: Callable[[bool], T]) -> T:
        alone = self.threads > 1 and self.waiting == 1
        return self._compute(lambda: work(alone), self.threads if alone else 1)

    def _compute(self, work: Callable[[], T], places: int) -> T:
        with self._entrance:  # so that tasks of one place do not overtake a task of all
            for _ in range(places):
                self._places.acquire()
        try:
            compute_with(self._cores if places == self.threads else 1)
            with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
                return work()
        finally:
            compute_with(self._cores)  # new threads inherit this count
            self._places.release(places)


def batch_sizes(most: int) -> list[int]:
    """The sizes of batches of up to ``most`` items: 1, 2, 4, ... There are few, so that each can be
    tested when a server starts."""
    return [1 << power for power in range(most.bit_length())]


class Batches(Generic[Item, Result, Answer]):
    """Batches items of one kind that wait for a model.

    No item waits for others. When a thread of the lane is free, the waiting items become one batch,
    or one batch per thread of the lane. So a lone item is as fast as without batching, and batches
    grow with the load. A second lane fills the answers of a batch while the model continues.

    The replicas of a model have a lane each; all items wait in one queue for the first free lane.
    """

    def __init__(
        self,
        work: Mapping[ModelLane, Callable[[Sequence[Item]], Sequence[Result]]],
        most: int,
        answering: Lane,
        answer: Callable[[Item, Result], Answer],
    ) -> None:
        """``work`` maps, for each lane, a batch of items to their results; the batch has one of the
        `batch_sizes` of ``most``. ``answer`` maps an item and its result to its answer, in the lane
        ``answering``."""
        self._work, self._most = work, most
        self._threads = sum(lane.threads for lane in work)
        self._answering, self._answer = answering, answer
        self._waiting: dict[Hashable, list[tuple[Item, asyncio.Future[Answer]]]] = {}
        self._lock = threading.Lock()

    async def run(self, kind: Hashable, item: Item) -> Answer:
        """The answer to one item. Cancelling the caller drops an item that has not started."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        with self._lock:
            self._waiting.setdefault(kind, []).append((item, future))
        # A turn may serve several waiting items. An item does not wait for its own turn, or every
        # later turn would find a single item. It has a turn in every lane, for the first that is
        # free; the others find nothing to do, or are cancelled.
        turns = [lane.share(partial(self._turn, lane, kind)) for lane in self._work]
        for turn in turns:
            turn.add_done_callback(
                lambda _: all(turn.cancelled() for turn in turns) and future.cancel()
            )
        try:
            return await future
        finally:
            future.cancel()
            for turn in turns:
                turn.cancel()

    def _turn(self, lane: ModelLane, kind: Hashable, alone: bool) -> None:
        with self._lock:
            waiting = [w for w in self._waiting.pop(kind, ()) if not w[1].cancelled()]
            if not waiting:
                return
            share = math.ceil(len(waiting) / self._threads)
            # With all cores, a single item is served.
            size = 1 if alone else batch_sizes(min(self._most, share))[-1]
            batch, others = waiting[:size], waiting[size:]
            if others:
                self._waiting[kind] = others
        try:
            items = [item for item, _ in batch]
            results = computed(lambda: computed_in_halves(self._work[lane], items))
            self._answering.post(lambda: self._answers(batch, results))
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
    if not future.done():  # its caller may have cancelled it
        future.set_result(result)


def _fail(future: asyncio.Future[T], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)

"""The number of threads that a process computes with."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def compute_with(count: int) -> None:
    """Have torch compute with ``count`` threads for the calling thread. A new thread starts with
    the last count that any thread has set."""
    import torch

    torch.get_num_threads()  # torch resets a thread's count on the first query: query, then set
    torch.set_num_threads(count)


def use_one_thread() -> None:
    """Compute with one thread in this process, when several processes share the cores."""
    import faiss

    compute_with(1)
    faiss.omp_set_num_threads(1)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread in the body. That is faster when steps are small, because threads
    that wait for each other between steps keep their cores busy."""
    import faiss
    import torch

    before = torch.get_num_threads(), faiss.omp_get_max_threads()
    use_one_thread()
    try:
        yield
    finally:
        compute_with(before[0])
        faiss.omp_set_num_threads(before[1])


def map_in_threads(
    work: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Iterator[Result]:
    """Yield ``work(item)`` for each item, in order, computed by ``workers`` threads in parallel; in
    each of them torch computes with one thread.

    Threads that never wait for each other are faster than the threads of one computation, which
    meet after every step. At most ``workers`` items are started ahead of the consumer.
    """
    import torch

    before = torch.get_num_threads()
    begun: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(workers, initializer=compute_with, initargs=(1,))
    try:
        for item in items:
            begun.append(pool.submit(work, item))
            if len(begun) > workers:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        compute_with(before)  # new threads inherit the count

"""How many threads a process computes with."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def compute_with(count: int) -> None:
    """Have torch compute with ``count`` threads for the calling thread. Threads to come begin with
    the last count that any thread has set."""
    import torch

    torch.get_num_threads()  # what is set before a thread's first question is forgotten by it
    torch.set_num_threads(count)


def use_one_thread() -> None:
    """Compute with one thread in this process, which is one of several that share the cores."""
    import faiss

    compute_with(1)
    faiss.omp_set_num_threads(1)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread in the body, which is faster where steps are small: threads that wait
    for each other between them keep cores busy."""
    import faiss
    import torch

    before = torch.get_num_threads(), faiss.omp_get_max_threads()
    use_one_thread()
    try:
        yield
    finally:
        compute_with(before[0])
        faiss.omp_set_num_threads(before[1])


def side_by_side(
    work: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Iterator[Result]:
    """``work`` of each of ``items``, in their order, by ``workers`` threads that torch computes
    with one thread each.

    Threads that never wait for each other do more together than those of one computation, which
    meet after every step of it. Beyond what was asked for, ``workers`` items are begun.
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
        compute_with(before)  # for threads to come

"""How many threads a process computes with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


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

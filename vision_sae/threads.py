"""How many threads a process computes with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


def use_one_thread() -> None:
    """Compute with one thread in this process, which is one of several that share the cores."""
    import faiss
    import torch

    torch.set_num_threads(1)
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
        torch.set_num_threads(before[0])
        faiss.omp_set_num_threads(before[1])

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def small(one_thread: int) -> None:
    """Every test here computes with one thread; see `tests.worlds.fixtures`."""

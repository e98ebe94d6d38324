"""What Prometheus reads: calls by method and status, their time, and how many are inside."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prometheus_client import Counter, Gauge, Histogram

CALLS = Counter("vision_sae_calls_total", "Calls by method and status.", ["method", "code"])
SECONDS = Histogram("vision_sae_call_seconds", "Seconds a call took.", ["method"])
INSIDE = Gauge("vision_sae_calls_inside", "Calls waiting or running.")


@dataclass
class Outcome:
    """How a call ended; set by whoever ends it."""

    code: str = "OK"


@contextmanager
def measured(method: str) -> Iterator[Outcome]:
    """Count and time a call; an exception that is not accounted for counts as UNKNOWN."""
    outcome, start = Outcome(), time.perf_counter()
    INSIDE.inc()
    try:
        yield outcome
    except BaseException:
        if outcome.code == "OK":
            outcome.code = "UNKNOWN"
        raise
    finally:
        INSIDE.dec()
        SECONDS.labels(method).observe(time.perf_counter() - start)
        CALLS.labels(method, outcome.code).inc()

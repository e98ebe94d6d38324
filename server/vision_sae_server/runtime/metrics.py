"""Prometheus metrics: calls by method and status, their duration, and calls under way."""

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
class CallStatus:
    """The status of a finished call; the gate sets it."""

    code: str = "OK"


@contextmanager
def measured(method: str) -> Iterator[CallStatus]:
    """Count and time a call; an exception without a status counts as UNKNOWN."""
    status, start = CallStatus(), time.perf_counter()
    INSIDE.inc()
    try:
        yield status
    except BaseException:
        if status.code == "OK":
            status.code = "UNKNOWN"
        raise
    finally:
        INSIDE.dec()
        SECONDS.labels(method).observe(time.perf_counter() - start)
        CALLS.labels(method, status.code).inc()

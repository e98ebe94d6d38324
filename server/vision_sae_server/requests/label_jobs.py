"""Durations and resume tokens of requests about label jobs."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration

from vision_sae.errors import InvalidInputError

_MOST_SECONDS = 315_576_000_000
"""The most seconds of a google.protobuf.Duration: 10,000 years."""


def duration_seconds(duration: Duration) -> float:
    """The seconds of a duration; raises `InvalidInputError` for an invalid duration."""
    if not (0 <= duration.seconds <= _MOST_SECONDS and 0 <= duration.nanos < 10**9):
        raise InvalidInputError(
            f"a duration has 0 to {_MOST_SECONDS:,} seconds and 0 to 999,999,999 nanos; leave it "
            "out for no limit",
            field="label_job.budget.max_duration",
        )
    return duration.seconds + duration.nanos / 1e9


def resume_sequence(token: str) -> int:
    """The number, from a resume token, of the last unit that a watcher has seen; 0 without one."""
    if token and not (token.isdecimal() and token.isascii()):
        raise InvalidInputError(
            f"resume_token {token!r} is not from this server; start without one",
            field="resume_token",
        )
    return int(token or 0)

"""The server's log on stderr: one line per record, without any text of a caller.

Our own records quote no caller. Messages of other libraries may quote their input (diffusers warns
with the end of a long prompt), and so may the message of any exception. The log leaves such
messages out, and says only where they came from.
"""

from __future__ import annotations

import logging
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from vision_sae.config import LogLevel

_OURS = ("vision_sae", "vision_sae_server")
_FRAMED = ("asyncio", "grpc")
"""Libraries that log exceptions of our code, which our handler shows without their message. Other
libraries have handlers that would show the message, so their exceptions are dropped."""
_LEFT_OUT = "message left out: it may quote a caller (%s:%s)"
_LOG = logging.getLogger("vision_sae_server")


def _wordless(*args: Any, **kwargs: Any) -> logging.LogRecord:
    """A log record; the message of another library's record is left out."""
    record = logging.LogRecord(*args, **kwargs)
    library = record.name.partition(".")[0]
    if library not in _OURS:
        record.msg, record.args = _LEFT_OUT, (record.filename, record.lineno)
        if library not in _FRAMED:
            record.exc_info = None
    return record


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The causes of an exception, the first cause first, and the exception itself."""
    if error is not None:
        yield from _chain(
            error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        )
        yield error


class _Formatter(logging.Formatter):
    """``2026-01-31 12:00:00 INFO vision_sae_server: message``; UTC."""

    converter = staticmethod(time.gmtime)

    def __init__(self) -> None:
        super().__init__("%(asctime)sZ %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")

    def formatException(
        self,
        ei: tuple[type[BaseException], BaseException, TracebackType | None]
        | tuple[None, None, None],
    ) -> str:
        """The traceback and class of an exception, without its message, which may quote a
        caller."""
        lines: list[str] = []
        for error in _chain(ei[1]):
            lines += traceback.format_tb(error.__traceback__)
            lines.append(f"{type(error).__qualname__} (message left out: it may quote a caller)\n")
        return "".join(lines).rstrip()


def configure(level: LogLevel) -> None:
    """Log to stderr: our records from ``level`` on, and warnings and errors of other libraries."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter())
    logging.setLogRecordFactory(_wordless)
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    for name in _OURS:
        logging.getLogger(name).setLevel(level.upper())
    warnings.simplefilter("ignore")  # warnings may quote a caller


class Steps:
    """Logs the steps of a server's start: a line when a step begins, with the seconds so far."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def __call__(self, what: str) -> None:
        """Log that a step begins."""
        _LOG.info("[%5.1f s] %s", time.perf_counter() - self._start, what)

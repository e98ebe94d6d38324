"""The exit statuses of the commands.

| exit status | meaning |
|---|---|
| 0 | success; a server stopped on request, after it finished the calls that it had accepted |
| 1 | a fault of the program, with a traceback to report; `doctor`: an installed part is broken |
| 2 | refused: an argument or an input cannot be used, and the message says why |
| 3 | a server whose GPU failed in a way that only another process mends; start it again |
| 130 | interrupted by Ctrl-C; most commands resume when they are run again |
| 141 | the reader of the output closed the pipe |
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import typer

DONE, FAULT, REFUSED, DEVICE_LOST, INTERRUPTED, UNREAD = 0, 1, 2, 3, 130, 141


@contextmanager
def interruptible(program: str) -> Iterator[None]:
    """Exit without a traceback when the body is interrupted: with one line of message after Ctrl-C,
    and silently when the reader of the output closes the pipe."""
    try:
        yield
    except KeyboardInterrupt:
        typer.secho(f"{program}: interrupted", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        with suppress(OSError, ValueError):  # otherwise Python's flush at exit would fail again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(UNREAD) from None

"""How the commands end.

| exit status | what it means |
|---|---|
| 0 | done; of a server: stopped as it was asked to, after the calls that it had accepted |
| 1 | a fault of ours, with a traceback to report; of `doctor`: something installed is broken |
| 2 | refused: what was asked for, named or given cannot be used, and the message says why |
| 130 | interrupted by Ctrl-C; most commands go on where they stopped when they are given again |
| 141 | whoever read the output went away |
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import typer

DONE, FAULT, REFUSED, INTERRUPTED, UNREAD = 0, 1, 2, 130, 141


@contextmanager
def interruptible(program: str) -> Iterator[None]:
    """Ctrl-C in the body is told in one line, and a reader who goes away in none."""
    try:
        yield
    except KeyboardInterrupt:
        typer.secho(f"{program}: interrupted", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        with suppress(OSError, ValueError):  # or what Python flushes at its end would fail again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(UNREAD) from None

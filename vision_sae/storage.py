"""Conversion of disk errors into the errors of this project.

A full disk ends a write in many ways: by an `OSError` with or without a number, or by an error of
safetensors, FAISS or SQLite that quotes the system's message. All of them become one error here.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vision_sae.errors import InvalidInputError, StorageFullError, VisionSaeError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM)
_SHORT_WRITE = re.compile(r"\d+ requested and \d+ written")
"""NumPy's whole message when the disk took only a part of an array."""
_SQLITE_FULL = "database or disk is full"


def _number(error: BaseException) -> int | None:
    """The system's error number behind ``error``; None for errors that are not converted here."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno if error.errno in _FULL + _REFUSED else None
    message = str(error)
    if _SHORT_WRITE.search(message) or _SQLITE_FULL in message:
        return errno.ENOSPC
    return next((number for number in _FULL + _REFUSED if os.strerror(number) in message), None)


def storage_error(error: BaseException, path: Path | str = "") -> VisionSaeError | None:
    """The error to raise instead of ``error``, which occurred while ``path`` was written; None when
    the disk was not the cause."""
    number = _number(error)
    if number is None:
        return None
    where = getattr(error, "filename", None) or path or "the output"
    if number in _FULL:
        return StorageFullError(
            f"{where} cannot be written: {os.strerror(number)}; free some room, or write to "
            "another disk, and run it again"
        )
    return InvalidInputError(
        f"{where}: {os.strerror(number)}; name another place, or have its permissions changed"
    )


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Convert disk errors in the body: to `StorageFullError` on a full disk, to `InvalidInputError`
    for missing permissions. The message names the file, or ``path``."""
    try:
        yield
    except VisionSaeError:
        raise
    except Exception as error:
        if converted := storage_error(error, path):
            raise converted from error
        raise

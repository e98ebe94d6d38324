"""Errors of a disk that cannot take what is written, in words.

A full disk ends a write in many ways: by an `OSError` with or without a number, by an error of
safetensors, FAISS or SQLite that quotes the system's words. Here they become one.
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
"""All that NumPy says of an array of which the disk took only a part."""
_SQLITE_FULL = "database or disk is full"


def _number(error: BaseException) -> int | None:
    """The error number of the system behind ``error``, where it is one of those told here."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno if error.errno in _FULL + _REFUSED else None
    said = str(error)
    if _SHORT_WRITE.search(said) or _SQLITE_FULL in said:
        return errno.ENOSPC
    return next((number for number in _FULL + _REFUSED if os.strerror(number) in said), None)


def storage_error(error: BaseException, path: Path | str = "") -> VisionSaeError | None:
    """What to tell instead of ``error``, met while ``path`` was written; None for other errors."""
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
    """Errors of the disk in the body become `StorageFullError`, or `InvalidInputError` where it
    may not be written to, with the name of the file or of ``path``."""
    try:
        yield
    except VisionSaeError:
        raise
    except Exception as error:
        if told := storage_error(error, path):
            raise told from error
        raise

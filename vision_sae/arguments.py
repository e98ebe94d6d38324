"""What every command line asks of its arguments before a command begins."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vision_sae.errors import InvalidInputError


def check_words(given: Mapping[str, object]) -> None:
    """Refuse, by name, arguments that are not UTF-8: no message and no file could carry them."""
    for name, value in given.items():
        for word in value if isinstance(value, list) else (value,):
            if isinstance(word, str | Path) and _is_broken(str(word)):
                raise InvalidInputError(
                    f"{name.replace('_', ' ')} is not UTF-8; write it anew, or rename the file",
                    field=name,
                )


def _is_broken(word: str) -> bool:
    """Whether Python could not read all of its bytes, and put lone surrogates in their places."""
    return any("\ud800" <= letter <= "\udfff" for letter in word)

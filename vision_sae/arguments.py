"""Checks of the arguments of every command, before the command begins."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from vision_sae.errors import InvalidInputError
from vision_sae.texts import has_lone_surrogate


def check_arguments(arguments: Mapping[str, object]) -> None:
    """Raise `InvalidInputError`, naming the argument, for NaN and for text that is not valid UTF-8,
    which no message and no file can carry."""
    for name, value in arguments.items():
        called = name.replace("_", " ")
        for word in value if isinstance(value, list) else (value,):
            if isinstance(word, str | Path) and has_lone_surrogate(str(word)):
                raise InvalidInputError(
                    f"{called} is not UTF-8; write it anew, or rename the file", field=name
                )
            if isinstance(word, float) and math.isnan(word):
                raise InvalidInputError(f"{called} is not a number; give one", field=name)

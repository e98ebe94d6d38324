"""The export formats of labels, by file suffix. This module does not import torch."""

from __future__ import annotations

from pathlib import Path

from vision_sae.errors import InvalidInputError

FORMATS = (".csv", ".jsonl", ".parquet")


def check_format(path: Path) -> None:
    """Raise `InvalidInputError` for a file with an unknown suffix."""
    if path.suffix.lower() not in FORMATS:
        raise InvalidInputError(
            f"{path.name} has an unknown format; use a suffix among {', '.join(FORMATS)}",
            field="path",
        )

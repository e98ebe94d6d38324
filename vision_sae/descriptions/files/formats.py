"""The formats in which labels are exported, by the suffix of a file's name. No torch."""

from __future__ import annotations

from pathlib import Path

from vision_sae.errors import InvalidInputError

FORMATS = (".csv", ".jsonl", ".parquet")


def check_format(path: Path) -> None:
    """Raise `InvalidInputError` for a file whose suffix names no format."""
    if path.suffix.lower() not in FORMATS:
        raise InvalidInputError(
            f"{path.name} names no format; end it in {', '.join(FORMATS)}", field="path"
        )

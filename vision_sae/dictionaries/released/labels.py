"""The labels of a released dictionary: a compressed file of descriptions, one JSON object a line.

The rows are those of a bundle's ``descriptions.jsonl``. What depends on the pictures of that bundle
(``evidence``) and what the describer rejected (``candidates``) stay behind: other users have other
pictures, and the file is small.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vision_sae.errors import CorruptArtifactError, InvalidInputError
from vision_sae.texts import lines_of

LABELS = "labels.jsonl.gz"
_LEFT_BEHIND = ("candidates", "evidence")

Rows = dict[int, dict[str, Any]]
"""{feature: its description}"""


def kept_rows(rows: Iterable[Mapping[str, Any]], width: int) -> Rows:
    """The rows as they are released, in the order of their features.

    Raises `InvalidInputError` for a row without a text or an abstention, for a second row of a
    feature, and for a feature that a dictionary of ``width`` features does not have.
    """
    kept: Rows = {}
    for row in rows:
        feature = row.get("feature")
        if not isinstance(feature, int) or not 0 <= feature < width or feature in kept:
            raise InvalidInputError(
                f"labels: feature {feature!r} is described twice or is none of the {width} "
                "features; give the descriptions of a bundle of this dictionary",
                field="labels",
            )
        if "text" not in row or (row["text"] is None) != bool(row.get("abstained")):
            raise InvalidInputError(
                f"labels: feature {feature} has neither a text nor a reason to abstain, or both",
                field="labels",
            )
        kept[feature] = {key: value for key, value in row.items() if key not in _LEFT_BEHIND}
    return dict(sorted(kept.items()))


def write_labels(directory: Path, rows: Rows) -> None:
    """Write the labels file; equal rows give equal bytes."""
    text = "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows.values())
    (directory / LABELS).write_bytes(gzip.compress(text.encode(), mtime=0))


def read_labels(directory: Path) -> Rows:
    """The descriptions by feature; empty when the dictionary has none.

    What was left behind is empty in each row, so that rows are whole descriptions.
    """
    path = directory / LABELS
    if not path.is_file():
        return {}
    try:
        lines = lines_of(gzip.decompress(path.read_bytes()).decode())
        rows: list[dict[str, Any]] = [json.loads(line.text) for line in lines]
        empty: dict[str, Any] = {key: [] for key in _LEFT_BEHIND}
        return {row["feature"]: empty | row for row in rows}
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        raise CorruptArtifactError(
            f"{path} holds no descriptions ({error}); fetch the dictionary again"
        ) from error


def labelled(rows: Rows) -> int:
    """How many features have a text."""
    return sum(row["text"] is not None for row in rows.values())

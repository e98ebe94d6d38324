"""All descriptions of some units as CSV, JSONL or Parquet, one row a unit, written as they come.

The three hold the same: the unit, its text or why there is none, who wrote it and when, which judge
has confirmed it (``judged_by``; empty: the text is a guess), and its scores. JSONL and Parquet also
hold the patches it was made from, its candidates and details. CSV has the value of each score in a
column of its own, and all of them with their intervals and judges as JSON.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vision_sae.descriptions.files.formats import check_format
from vision_sae.descriptions.protocol import JUDGED_BY, Description, Metric, Negatives
from vision_sae.descriptions.scores.many import Scored
from vision_sae.descriptions.store import Unit
from vision_sae.files import replacing
from vision_sae.places import check_output_file

Row = tuple[str, Mapping[str, Any]]
"""A unit's resource name and its description: the fields of
`vision_sae.descriptions.protocol.Description`, and ``origin``, ``author`` and ``create_time`` (a
datetime that knows its time zone, or None)."""

_ROW_GROUP = 4096
_PLAIN = ("text", "abstained", "origin", "author", "describer", "describer_version")
_VALUES: tuple[tuple[Metric, Negatives], ...] = (
    ("pmi", ""),
    ("detection_auc", "random"),
    ("detection_auc", "hard"),
    ("detection_balanced_accuracy", "random"),
    ("detection_balanced_accuracy", "hard"),
    ("fuzzing_auc", ""),
    ("simulation_pearson", ""),
    ("intruder_accuracy", "random"),
    ("intruder_accuracy", "hard"),
    ("cosy_auc", ""),
    ("cosy_mean_difference", ""),
    ("causal", ""),
    ("correlation", ""),
    ("auprc", ""),
    ("f1", ""),
    ("iou", ""),
    ("precision", ""),
    ("lift", ""),
    ("silent_share", ""),
)
"""Scores that have a column of their own in CSV. Where several judges have measured one, the column
has the score by the judge who confirmed the text, or else the first."""

_SCORE = pa.struct(
    [
        ("metric", pa.string()),
        ("negatives", pa.string()),
        *((name, pa.float64()) for name in ("value", "lower", "upper", "control")),
        ("n", pa.int64()),
        ("judge", pa.string()),
    ]
)
_SCHEMA = pa.schema(
    [
        pa.field("unit", pa.string(), nullable=False),
        *((name, pa.string()) for name in _PLAIN[:-1]),
        ("describer_version", pa.int64()),
        (JUDGED_BY, pa.string()),
        ("create_time", pa.timestamp("us", tz="UTC")),
        ("scores", pa.list_(_SCORE)),
        ("evidence", pa.list_(pa.int64())),
        ("candidates", pa.list_(pa.struct([("text", pa.string()), ("value", pa.float64())]))),
        ("details", pa.string()),
    ]
)


def export(path: Path, rows: Iterable[Row], *, overwrite: bool = False) -> int:
    """Write ``rows`` to ``path`` in the format of its suffix; gives their number.

    The file is written whole or not at all, and replaces an earlier one only with ``overwrite``.
    Raises `InvalidInputError` for another suffix.
    """
    check_format(path)
    check_output_file(path, overwrite=overwrite)
    with replacing(path) as temporary:
        return _WRITERS[path.suffix.lower()](temporary, rows)


def scored_rows(parent: str, texts: Mapping[int, str], scored: Scored) -> Iterator[Row]:
    """Somebody's labels of units of ``parent``, as rows: a label that is too weak stays, with the
    reason beside it."""
    for unit, scores in scored.scores.items():
        made = Description(unit, texts[unit], scored.abstained.get(unit, ""), "", 0, tuple(scores))
        stands = {"origin": "imported", "author": "", "create_time": None}
        yield Unit(parent, unit).resource, asdict(made) | stands


def _write_csv(path: Path, rows: Iterable[Row]) -> int:
    count = 0
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        columns = [f"{metric}_{negatives}".rstrip("_") for metric, negatives in _VALUES]
        table.writerow(("unit", *_PLAIN, JUDGED_BY, "create_time", *columns, "scores"))
        for count, (unit, made) in enumerate(rows, start=1):  # noqa: B007
            values = _values(made)
            table.writerow(
                (
                    unit,
                    *(made[name] for name in _PLAIN),
                    _judge(made),
                    _iso(made),
                    *(values.get(column) for column in _VALUES),
                    json.dumps(list(made["scores"])),
                )
            )
    return count


def _judge(made: Mapping[str, Any]) -> str:
    """Who confirmed a text; empty for a guess, and where there is no text."""
    return "" if made["text"] is None else str(made["details"].get(JUDGED_BY, ""))


def _values(made: Mapping[str, Any]) -> dict[tuple[Metric, Negatives], float]:
    """{(metric, negatives): value}; of several judges see `_VALUES`."""
    judge = _judge(made)
    best_last = sorted(
        reversed(made["scores"]), key=lambda score: bool(judge) and score["judge"] == judge
    )
    return {(score["metric"], score["negatives"]): score["value"] for score in best_last}


def _iso(made: Mapping[str, Any]) -> str | None:
    created: datetime | None = made["create_time"]
    return None if created is None else created.isoformat()


def _write_jsonl(path: Path, rows: Iterable[Row]) -> int:
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for count, (unit, made) in enumerate(rows, start=1):  # noqa: B007
            row = _record(unit, made) | {"details": made["details"], "create_time": _iso(made)}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return count


def _write_parquet(path: Path, rows: Iterable[Row]) -> int:
    count, left = 0, iter(rows)
    with pq.ParquetWriter(path, _SCHEMA) as table:
        for group in _groups(left):
            records = [_record(unit, made) for unit, made in group]
            table.write_table(pa.Table.from_pylist(records, schema=_SCHEMA))
            count += len(group)
    return count


def _groups(rows: Iterator[Row]) -> Iterator[list[Row]]:
    while group := list(islice(rows, _ROW_GROUP)):
        yield group


def _record(unit: str, made: Mapping[str, Any]) -> dict[str, Any]:
    """A row in the columns of the Parquet schema; details as JSON, since each has its own."""
    return {
        "unit": unit,
        **{name: made[name] for name in _PLAIN},
        JUDGED_BY: _judge(made),
        "create_time": made["create_time"],
        "scores": [dict(score) for score in made["scores"]],
        "evidence": [int(patch) for patch in made["evidence"]],
        "candidates": [{"text": text, "value": value} for text, value in made["candidates"]],
        "details": json.dumps(made["details"], ensure_ascii=False),
    }


_WRITERS: dict[str, Callable[[Path, Iterable[Row]], int]] = {
    ".csv": _write_csv,
    ".jsonl": _write_jsonl,
    ".parquet": _write_parquet,
}

"""Export of descriptions as CSV, JSONL or Parquet, one row per unit, in a stream.

Each format holds the unit, its text or the reason for an abstention, the author and the time, the
judge who confirmed the text (``judged_by``; empty for a guess), and the scores. JSONL and Parquet
also hold the patches behind the description, its candidates and its details. CSV has one column for
the value of each score, and one JSON column for all scores with intervals and judges.
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

from vision_sae.descriptions.protocol import JUDGED_BY, Description, Metric, Negatives
from vision_sae.descriptions.scoring.many import ScoredLabels
from vision_sae.files import replacing
from vision_sae.labels.entries import Unit
from vision_sae.labels.files.formats import check_format
from vision_sae.places import check_output_file

Row = tuple[str, Mapping[str, Any]]
"""A unit's resource name and its description: the fields of
`vision_sae.descriptions.protocol.Description`, and ``origin``, ``author`` and ``create_time`` (a
timezone-aware datetime, or None)."""

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
"""Scores with their own column in CSV. If several judges measured a score, the column holds the
value of the judge who confirmed the text, or else the first value."""

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
    """Write ``rows`` to ``path`` in the format of its suffix; return their number.

    The file is written atomically; ``overwrite`` allows replacing a file. Raises
    `InvalidInputError` for an unknown suffix.
    """
    check_format(path)
    check_output_file(path, overwrite=overwrite)
    with replacing(path) as temporary:
        return _WRITERS[path.suffix.lower()](temporary, rows)


def scored_rows(parent: str, texts: Mapping[int, str], scored: ScoredLabels) -> Iterator[Row]:
    """ScoredLabels labels of units of ``parent`` as rows; a weak label stays, beside the reason."""
    for unit, scores in scored.scores.items():
        description = Description(
            unit, texts[unit], scored.abstained.get(unit, ""), "", 0, tuple(scores)
        )
        stands = {"origin": "imported", "author": "", "create_time": None}
        yield Unit(parent, unit).resource, asdict(description) | stands


def _write_csv(path: Path, rows: Iterable[Row]) -> int:
    count = 0
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        columns = [f"{metric}_{negatives}".rstrip("_") for metric, negatives in _VALUES]
        table.writerow(("unit", *_PLAIN, JUDGED_BY, "create_time", *columns, "scores"))
        for count, (unit, row) in enumerate(rows, start=1):  # noqa: B007
            values = _values(row)
            table.writerow(
                (
                    unit,
                    *(row[name] for name in _PLAIN),
                    _judge(row),
                    _iso(row),
                    *(values.get(column) for column in _VALUES),
                    json.dumps(list(row["scores"])),
                )
            )
    return count


def _judge(row: Mapping[str, Any]) -> str:
    """The judge who confirmed a text; empty for a guess and for an abstention."""
    return "" if row["text"] is None else str(row["details"].get(JUDGED_BY, ""))


def _values(row: Mapping[str, Any]) -> dict[tuple[Metric, Negatives], float]:
    """{(metric, negatives): value}; `_VALUES` explains the choice among several judges."""
    judge = _judge(row)
    best_last = sorted(
        reversed(row["scores"]), key=lambda score: bool(judge) and score["judge"] == judge
    )
    return {(score["metric"], score["negatives"]): score["value"] for score in best_last}


def _iso(row: Mapping[str, Any]) -> str | None:
    created: datetime | None = row["create_time"]
    return None if created is None else created.isoformat()


def _write_jsonl(path: Path, rows: Iterable[Row]) -> int:
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for count, (unit, description) in enumerate(rows, start=1):  # noqa: B007
            row = _record(unit, description) | {
                "details": description["details"],
                "create_time": _iso(description),
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return count


def _write_parquet(path: Path, rows: Iterable[Row]) -> int:
    count, left = 0, iter(rows)
    with pq.ParquetWriter(path, _SCHEMA) as table:
        for group in _groups(left):
            records = [_record(unit, description) for unit, description in group]
            table.write_table(pa.Table.from_pylist(records, schema=_SCHEMA))
            count += len(group)
    return count


def _groups(rows: Iterator[Row]) -> Iterator[list[Row]]:
    while group := list(islice(rows, _ROW_GROUP)):
        yield group


def _record(unit: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """A row in the columns of the Parquet schema. Details are JSON: their keys vary by
    describer."""
    return {
        "unit": unit,
        **{name: row[name] for name in _PLAIN},
        JUDGED_BY: _judge(row),
        "create_time": row["create_time"],
        "scores": [dict(score) for score in row["scores"]],
        "evidence": [int(patch) for patch in row["evidence"]],
        "candidates": [{"text": text, "value": value} for text, value in row["candidates"]],
        "details": json.dumps(row["details"], ensure_ascii=False),
    }


_WRITERS: dict[str, Callable[[Path, Iterable[Row]], int]] = {
    ".csv": _write_csv,
    ".jsonl": _write_jsonl,
    ".parquet": _write_parquet,
}

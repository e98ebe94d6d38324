"""The card of a released dictionary: its purpose, data, labels, licence and limits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from vision_sae.dictionaries.released.labels import Rows, labelled
from vision_sae.errors import InvalidInputError
from vision_sae.files import read_json

CARD = "card.md"
_JUDGED_BY = "judged_by"
"""The detail of a description that names the judge who confirmed it."""


@dataclass(frozen=True)
class Notes:
    """The parts of a card that the dictionary's manifest does not hold, in Markdown."""

    about: str
    """What the dictionary is for."""
    data: str
    """The data that the dictionary was trained on, and the data's source."""
    labels: str
    """How labels were made and judged."""
    licence: str
    limits: tuple[str, ...]
    """Uses for which the dictionary must not be trusted, one sentence each."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read notes from a JSON file; raises `InvalidInputError` when a key is missing, unknown or
        empty."""
        said = read_json(path)
        names = {f.name for f in fields(cls)}
        if not isinstance(said, dict) or set(said) != names or not all(said.values()):
            raise InvalidInputError(
                f"{path}: notes are one JSON object with {', '.join(sorted(names))}, none of them "
                "empty",
                field="notes",
            )
        limits = said.pop("limits")
        if not isinstance(limits, list) or not all(isinstance(s, str) for s in said.values()):
            raise InvalidInputError(
                f"{path}: limits is a list of sentences, and every other note is a text",
                field="notes",
            )
        return cls(**said, limits=tuple(map(str, limits)))


def card(manifest: Mapping[str, Any], rows: Rows, notes: Notes) -> str:
    """The text of the card, in Markdown.

    ``manifest`` is that of the released dictionary, ``rows`` are its descriptions.
    """
    parts = [
        f"# {manifest['released']['name']}\n\n{notes.about}",
        _facts(manifest),
        f"## Data\n\n{notes.data}\n\nSHA-256 of the data: `{manifest['data_sha256']}`.",
        _metrics(manifest),
        _labels(manifest, rows, notes),
        f"## Licence\n\n{notes.licence}",
        "## Limits\n\n" + "\n".join(f"- {limit}" for limit in notes.limits),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _facts(manifest: Mapping[str, Any]) -> str:
    described, model = manifest["dictionary"], manifest["model"]
    k = described.get("k")
    facts = {
        "model": f"`{model['name']}`, weights `{model['weights_sha256'][:16]}`",
        "site": f"`{manifest['site']}`, {described['dim']} dimensions",
        "dictionary": f"{described['architecture']}, {described['width']} features"
        + (f", k = {k}" if k else ""),
        "weights": described["dtype"],
        "made with": f"vision_sae {manifest['code_version']}",
    }
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    return f"| | |\n|---|---|\n{rows}"


def _metrics(manifest: Mapping[str, Any]) -> str:
    measured: Mapping[str, Mapping[str, float]] = manifest["metrics"]
    if not measured:
        return ""
    rounded = manifest["released"]["measured_rounded"]
    names = [name if name in rounded else f"{name}, before rounding" for name in measured]
    lines = [
        f"| metric | {' | '.join(names)} |",
        "|---" * (1 + len(measured)) + "|",
    ]
    for metric in dict.fromkeys(key for values in measured.values() for key in values):
        values = [f"{v[metric]:.4g}" if metric in v else "" for v in measured.values()]
        lines.append(f"| {metric} | {' | '.join(values)} |")
    return "## Metrics\n\n" + "\n".join(lines)


def _labels(manifest: Mapping[str, Any], rows: Rows, notes: Notes) -> str:
    width, named = manifest["dictionary"]["width"], labelled(rows)
    counts = f"{named} of {width} features have a label; {len(rows) - named} abstain."
    judges = Counter(
        str(row.get("details", {}).get(_JUDGED_BY, "")) or "nobody"
        for row in rows.values()
        if row["text"] is not None
    )
    shares = ", ".join(f"{judge} {count}" for judge, count in judges.most_common())
    judged = f" Confirmed by: {shares}." if shares else ""
    return f"## Labels\n\n{notes.labels}\n\n{counts}{judged}"

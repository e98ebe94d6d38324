"""Auditing: which units respond to something they should not? (Hernandez et al. 2022, section 6)"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vision_sae.descriptions.evidence.protocol import Evidence
from vision_sae.descriptions.matching import matches


@dataclass(frozen=True)
class Finding:
    """A unit whose label matches the query, with what it fires on."""

    collection: str
    """``dictionaries/{dictionary}`` or ``models/{model}/sites/{site}``."""
    index: int
    text: str
    captions: tuple[str, ...]
    """Of the pictures that fire it most, strongest first, those without a caption by their name."""
    pictures: tuple[int, ...]
    """Their numbers in the data set."""


def audit(
    evidence: Evidence, labels: Mapping[int, str], query: str, *, pictures: int = 8
) -> list[Finding]:
    """The units whose label matches ``query`` as whole words, in their order."""
    findings = []
    for index, text in sorted(labels.items()):
        if not matches(query, text):
            continue
        shown = [firing.image for firing in evidence.firings(index)[:pictures]]
        records = [evidence.images[image] for image in shown]
        said = tuple(record.caption or record.id for record in records)
        findings.append(Finding(evidence.name, index, text, said, tuple(shown)))
    return findings

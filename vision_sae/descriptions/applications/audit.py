"""Auditing: which units respond to something they should not? (Hernandez et al. 2022, section 6)"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vision_sae.descriptions.applications.units import LabelledUnit
from vision_sae.descriptions.evidence.protocol import Evidence
from vision_sae.descriptions.matching import matches


@dataclass(frozen=True)
class Finding:
    """A unit whose label matches the query, with what it fires on."""

    collection: str
    """``dictionaries/{dictionary}`` or ``models/{model}/sites/{site}``."""
    index: int
    text: str
    judged_by: str
    """The judge who confirmed the label; empty for a guess."""
    captions: tuple[str, ...]
    """Of the pictures that fire it most, strongest first, those without a caption by their name."""
    pictures: tuple[int, ...]
    """Their numbers in the data set."""


def audit(
    evidence: Evidence, units: Iterable[LabelledUnit], query: str, *, pictures: int = 8
) -> list[Finding]:
    """The units of the evidence's site whose label matches ``query`` as whole words, in their
    order."""
    findings = []
    for unit in units:
        if unit.site != evidence.site or not matches(query, unit.text):
            continue
        shown = [firing.image for firing in evidence.firings(unit.index)[:pictures]]
        records = [evidence.images[image] for image in shown]
        said = tuple(record.caption or record.id for record in records)
        findings.append(
            Finding(evidence.name, unit.index, unit.text, unit.judged_by, said, tuple(shown))
        )
    return findings

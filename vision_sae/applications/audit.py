"""Auditing: which units respond to something they should not? (Hernandez et al. 2022, section 6)"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vision_sae.applications.units import LabelledUnit
from vision_sae.descriptions.matching import matches
from vision_sae.evidence.protocol import Evidence


@dataclass(frozen=True)
class Finding:
    """A unit whose label matches the query, with the pictures that fire it."""

    collection: str
    """``dictionaries/{dictionary}`` or ``models/{model}/sites/{site}``."""
    index: int
    text: str
    judged_by: str
    """The judge who confirmed the label; empty for a guess."""
    captions: tuple[str, ...]
    """Captions of the pictures that fire the unit most, strongest first; the picture's name where a
    caption is missing."""
    pictures: tuple[int, ...]
    """The numbers of these pictures in the data set."""


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
        captions = tuple(record.caption or record.id for record in records)
        findings.append(
            Finding(evidence.name, unit.index, unit.text, unit.judged_by, captions, tuple(shown))
        )
    return findings

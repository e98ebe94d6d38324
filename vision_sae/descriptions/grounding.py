"""Grounded labels with their judges: what the describer says, looked up on pictures it never saw."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from vision_sae.descriptions.describers.grounded import GroundedDescriber
from vision_sae.descriptions.evidence.protocol import Evidence, spread
from vision_sae.descriptions.predicates.facts import Facts
from vision_sae.descriptions.predicates.label import Label, label_from_json, read_label
from vision_sae.descriptions.protocol import JUDGED_BY, Description
from vision_sae.descriptions.scores.truth import Control, judge, judges_of

_POOL = 96
"""Units whose labels are the pool of controls, evenly spaced over those that fire."""
CONTROLS = 8


class Grounding:
    """The facts of one evidence, and what they say of labels.

    Labels of other units are the control; they come from a fixed choice of units, so that a unit's
    label and scores depend on nothing but the evidence.
    """

    def __init__(
        self, evidence: Evidence, directory: Path | None = None, *, progress: bool = False
    ) -> None:
        self.facts = Facts(evidence, directory, progress=progress)
        self._describer = GroundedDescriber(self.facts)
        self._pool: list[tuple[Control, str]] | None = None

    def label(self, evidence: Evidence, units: Iterable[int]) -> Iterator[Description]:
        """Grounded labels of ``units`` in order, judged; those that fail abstain."""
        for made in self._describer.describe(evidence, units):
            yield self.judged(evidence, made)

    def judged(self, evidence: Evidence, made: Description) -> Description:
        """A description with what the judges say of it; without its text when it fails.

        A text that no judge can look up stays as it is, a guess.
        """
        if made.text is None:
            return made
        label, region = label_of(made)
        if not judges_of(self.facts, label):
            return made
        verdict = judge(
            self.facts,
            evidence,
            made.feature,
            label,
            controls=self.controls(evidence, made.feature, made.text),
            region=region,
        )
        details = made.details | {JUDGED_BY: verdict.judged_by}
        scores = (*made.scores, *verdict.scores)
        if verdict.judged_by:
            return replace(made, scores=scores, details=details)
        own = made.scores[0].value if made.scores else float(made.details.get("gain", 0.0))
        candidates = made.candidates or ((made.text, own),)
        return replace(
            made,
            text=None,
            abstained=verdict.reason,
            scores=scores,
            candidates=candidates,
            details=details | {"rejected": made.text},
        )

    def controls(self, evidence: Evidence, unit: int, text: str) -> Sequence[Control]:
        """Labels of other units that say something else; the same whenever they are asked for."""
        if self._pool is None:
            self._pool = []
            said = set[str]()
            for made in self._describer.describe(evidence, spread(evidence, _POOL)):
                if made.text is not None and made.text not in said:
                    said.add(made.text)
                    label, region = label_of(made)
                    truth = self.facts.truth(label, region or 1)
                    self._pool.append((Control(made.feature, truth), made.text))
        others = [c for c, other in self._pool if c.unit != unit and other != text]
        chosen = np.random.default_rng(unit).permutation(len(others))[:CONTROLS]
        return [others[i] for i in sorted(chosen.tolist())]


def label_of(made: Description) -> tuple[Label, int | None]:
    """What of a description can be looked up, and how many patches its unit usually fires on."""
    if "label" in made.details:
        return label_from_json(made.details["label"]), made.details.get("region")
    return read_label(made.text or ""), None

"""Grounded labels with their judges: each is looked up on pictures that its describer never saw."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vision_sae.descriptions.describers.grounded import GroundedDescriber
from vision_sae.descriptions.evidence.protocol import Evidence, split, spread
from vision_sae.descriptions.evidence.sources import Sources
from vision_sae.descriptions.predicates.facts import Facts
from vision_sae.descriptions.predicates.label import Label, label_from_json, read_label
from vision_sae.descriptions.predicates.ranges import Over
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

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self._describer = GroundedDescriber(facts)
        self._pool: list[tuple[Control, str]] | None = None

    def label(self, evidence: Evidence, units: Iterable[int]) -> Iterator[Description]:
        """Grounded labels of ``units`` in order, judged; those that fail abstain."""
        for made in self._describer.describe(evidence, units):
            yield self.judged(evidence, made)

    def can_judge(self, made: Description) -> bool:
        """Whether captions or pixels can look any of a description up."""
        return made.text is not None and bool(judges_of(self.facts, label_of(made)))

    def judged(self, evidence: Evidence, made: Description) -> Description:
        """A description with what the judges say of it; without its text when it fails.

        A text that no judge can look up stays as it is, a guess.
        """
        if made.text is None or not self.can_judge(made):
            return made
        label = label_of(made)
        verdict = judge(
            self.facts,
            evidence,
            made.feature,
            label,
            side=self._unseen(evidence, made),
            controls=self.controls(evidence, made.feature, made.text),
            over=over_of(made),
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

    def _unseen(self, evidence: Evidence, made: Description) -> NDArray[np.bool_]:
        """The pictures (N) that no step of the choice of a label saw.

        Other describers look at a half of the unit's own firing pictures and at a half of the
        silent ones, whatever side their sources are on.
        """
        if made.describer == GroundedDescriber.name:
            return self.facts.side("judge")
        described = [firing.image for firing in split(evidence, made.feature).describe]
        sources = Sources(evidence)
        unseen = sources.none_of(np.array(described, dtype=np.int64))
        return np.asarray(unseen & (sources.for_scoring | (evidence.peaks(made.feature) > 0)))

    def controls(self, evidence: Evidence, unit: int, text: str) -> Sequence[Control]:
        """Labels of other units that say something else; the same whenever they are asked for."""
        if self._pool is None:
            self._pool = []
            said = set[str]()
            for made in self._describer.describe(evidence, spread(evidence, _POOL)):
                if made.text is not None and made.text not in said:
                    said.add(made.text)
                    self._pool.append((Control(made.feature, label_of(made)), made.text))
        others = [c for c, other in self._pool if c.unit != unit and other != text]
        chosen = np.random.default_rng(unit).permutation(len(others))[:CONTROLS]
        return [others[i] for i in sorted(chosen.tolist())]


def over_of(made: Description) -> Over:
    """Over what the truth of a description is compared with the activation."""
    return "patches" if made.details.get("over") == "patches" else "pictures"


def label_of(made: Description) -> Label:
    """What of a description can be looked up."""
    if "label" in made.details:
        return label_from_json(made.details["label"])
    return read_label(made.text or "")

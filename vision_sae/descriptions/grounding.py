"""Grounded labels with their judges: a label is tested on pictures that its describer never saw."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Bool

from vision_sae.descriptions.describers.grounded import GroundedDescriber
from vision_sae.descriptions.predicates.facts import Facts
from vision_sae.descriptions.predicates.label import Label, label_from_json, read_label
from vision_sae.descriptions.predicates.ranges import Over
from vision_sae.descriptions.protocol import JUDGED_BY, Description
from vision_sae.descriptions.scores.truth import Control, judge, judges_of
from vision_sae.evidence.protocol import Evidence, split, spread
from vision_sae.evidence.sources import Sources

_POOL = 96
"""Units whose labels form the pool of controls, evenly spaced over the units that fire."""
CONTROLS = 8
"""Control labels of a judgement."""


class Grounding:
    """Grounded labels for one evidence, and the judges of any label: captions and pixels.

    The control is labels of other units. They come from a fixed choice of units, so that a unit's
    label and scores depend on nothing but the evidence.
    """

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self._describer = GroundedDescriber(facts)
        self._pool: list[tuple[Control, str]] | None = None

    def label(self, evidence: Evidence, units: Iterable[int]) -> Iterator[Description]:
        """Grounded labels of ``units`` in order, judged; a label that fails is an abstention."""
        for description in self._describer.describe(evidence, units):
            yield self.judged(evidence, description)

    def can_judge(self, description: Description) -> bool:
        """Whether captions or pixels can test any part of a description."""
        return description.text is not None and bool(judges_of(self.facts, label_of(description)))

    def judged(self, evidence: Evidence, description: Description) -> Description:
        """A description with the scores of its judges, and without its text when it fails.

        A text that no judge can test stays unchanged; the text is then a guess.
        """
        text = description.text
        if text is None or not self.can_judge(description):
            return description
        verdict = judge(
            self.facts,
            evidence,
            description.feature,
            label_of(description),
            side=self._unseen(evidence, description),
            controls=self.controls(evidence, description.feature, text),
            over=over_of(description),
        )
        details = description.details | {JUDGED_BY: verdict.judged_by}
        scores = (*description.scores, *verdict.scores)
        if verdict.judged_by:
            return replace(description, scores=scores, details=details)
        gain = float(description.details.get("gain", 0.0))
        objective = description.scores[0].value if description.scores else gain
        return replace(
            description,
            text=None,
            abstained=verdict.reason,
            scores=scores,
            candidates=description.candidates or ((text, objective),),
            details=details | {"rejected": text},
        )

    def _unseen(self, evidence: Evidence, description: Description) -> Bool[np.ndarray, N]:
        """The pictures that no step of the choice of a label saw.

        The grounded describer looks at the choosing side alone. Every other describer looks at one
        half of the unit's firing pictures and at one half of the silent pictures.
        """
        if description.describer == GroundedDescriber.name:
            return self.facts.side("judge")
        described = [firing.image for firing in split(evidence, description.feature).describe]
        sources = Sources(evidence)
        unseen = sources.none_of(np.array(described, dtype=np.int64))
        fires = evidence.peaks(description.feature) > 0
        return np.asarray(unseen & (sources.for_scoring | fires))

    def controls(self, evidence: Evidence, unit: int, text: str) -> Sequence[Control]:
        """Different labels, of other units; the same labels in every call."""
        if self._pool is None:
            self._pool = []
            texts = set[str]()
            for description in self._describer.describe(evidence, spread(evidence, _POOL)):
                if description.text is not None and description.text not in texts:
                    texts.add(description.text)
                    control = Control(description.feature, label_of(description))
                    self._pool.append((control, description.text))
        others = [c for c, other in self._pool if c.unit != unit and other != text]
        chosen = np.random.default_rng(unit).permutation(len(others))[:CONTROLS]
        return [others[i] for i in sorted(chosen.tolist())]


def over_of(description: Description) -> Over:
    """Whether a description's truth is compared with the activation by picture or by patch."""
    return "patches" if description.details.get("over") == "patches" else "pictures"


def label_of(description: Description) -> Label:
    """The part of a description that captions and pixels can test."""
    if "label" in description.details:
        return label_from_json(description.details["label"])
    return read_label(description.text or "")

"""Labels: what a describer says, judged on pictures that it has not seen, or an abstention."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from vision_sae.descriptions.evidence.protocol import Evidence, spread
from vision_sae.descriptions.grounding import Grounding
from vision_sae.descriptions.protocol import Describer, Description, Metric
from vision_sae.descriptions.scores.scorer import CONTROLS, JUDGED_BY, Scorer, abstain

_POOL = 128
"""Units whose labels are the pool of controls, evenly spaced over those that fire."""


class _Control(NamedTuple):
    """A label of the pool."""

    unit: int
    text: str


class Labeller:
    """A describer and the scores of what it says.

    Each label is compared with labels of other units, the permuted-label control. These come from a
    fixed choice of units of the same evidence, so a unit's label, scores and control depend on
    nothing but the evidence.
    """

    def __init__(
        self,
        describer: Describer,
        scorer: Scorer | None,
        metrics: Sequence[Metric],
        grounding: Grounding | None = None,
    ) -> None:
        """With a ``grounding`` captions and pixels decide which labels stand, where they can look
        them up. What they cannot look up stands or falls by the ``scorer``, and without one as the
        describer makes it; it is a guess."""
        self.describer = describer
        self.scorer = scorer
        self._grounding = grounding
        self._metrics = metrics
        self._pools: dict[str, list[_Control]] = {}

    def label(
        self, evidence: Evidence, units: Iterable[int], metrics: Sequence[Metric] = ()
    ) -> Iterator[Description]:
        """The labels of ``units`` in order, scored by ``metrics``; with none, by the usual ones.
        What decides whether one abstains is measured in any case."""
        wanted = metrics or self._metrics
        for made in self.describer.describe(evidence, units):
            if made.text is None:
                yield made
                continue
            looked_up = self._grounding is not None and self._grounding.can_judge(made)
            if self.scorer is not None:
                made = self._scored(
                    self.scorer, evidence, made, made.text, wanted, decides=not looked_up
                )
            if looked_up and self._grounding is not None:
                made = self._grounding.judged(evidence, made)
            yield made

    def controls(self, evidence: Evidence, unit: int, text: str) -> list[str]:
        """Labels of other units that say something else; the same whenever they are asked for."""
        others = [c.text for c in self._pool(evidence) if c.unit != unit and c.text != text]
        count = min(CONTROLS, len(others))
        chosen = np.random.default_rng(unit).choice(len(others), count, replace=False)
        return [others[i] for i in sorted(chosen.tolist())]

    def _pool(self, evidence: Evidence) -> list[_Control]:
        if evidence.identity not in self._pools:
            made = self.describer.describe(evidence, spread(evidence, _POOL))
            texts = {d.text: d.feature for d in made if d.text is not None}
            self._pools[evidence.identity] = [_Control(unit, t) for t, unit in texts.items()]
        return self._pools[evidence.identity]

    def _scored(
        self,
        scorer: Scorer,
        evidence: Evidence,
        made: Description,
        text: str,
        metrics: Sequence[Metric],
        *,
        decides: bool,
    ) -> Description:
        controls = self.controls(evidence, made.feature, text)
        measured = tuple(dict.fromkeys((*metrics, JUDGED_BY)))
        scores = scorer.score(evidence, made.feature, text, measured, control_texts=controls)
        reason = abstain(scores) if decides else ""
        own = made.scores[0].value if made.scores else 0.0
        return replace(
            made,
            text=None if reason else text,
            abstained=reason,
            scores=(*made.scores, *scores),
            candidates=made.candidates or ((text, own),),
        )

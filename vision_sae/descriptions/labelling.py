"""Labels: the text of a describer, judged on pictures that the describer has not seen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from vision_sae.descriptions.grounding import Grounding
from vision_sae.descriptions.protocol import Describer, Description, Metric
from vision_sae.descriptions.scoring.scorer import CONTROLS, JUDGED_BY, Scorer, abstain
from vision_sae.evidence.protocol import Evidence, spread

_POOL = 128
"""Units whose labels form the pool of controls, evenly spaced over the units that fire."""


class _Control(NamedTuple):
    """A label of the pool."""

    unit: int
    text: str


class Labeller:
    """A describer with the scores of its labels.

    A label is compared with labels of other units, the permuted-label control. The control labels
    come from a fixed choice of units, so a unit's label, scores and control depend on nothing but
    the evidence.
    """

    def __init__(
        self,
        describer: Describer,
        scorer: Scorer | None,
        metrics: Sequence[Metric],
        grounding: Grounding | None = None,
    ) -> None:
        """``grounding`` decides about the labels that captions and pixels can test.

        The ``scorer`` decides about all other labels. Without a scorer, such a label stands as the
        describer wrote it. A label that no judge confirmed is a guess.
        """
        self.describer = describer
        self.scorer = scorer
        self._grounding = grounding
        self._metrics = metrics
        self._pools: dict[str, list[_Control]] = {}

    def label(
        self, evidence: Evidence, units: Iterable[int], metrics: Sequence[Metric] = ()
    ) -> Iterator[Description]:
        """The labels of ``units`` in order, scored by ``metrics`` or the configured metrics.

        The metric that decides about abstention is measured in any case.
        """
        wanted = metrics or self._metrics
        for description in self.describer.describe(evidence, units):
            if description.text is None:
                yield description
                continue
            judgeable = self._grounding is not None and self._grounding.can_judge(description)
            if self.scorer is not None:
                description = self._scored(
                    self.scorer,
                    evidence,
                    description,
                    description.text,
                    wanted,
                    decides=not judgeable,
                )
            if judgeable and self._grounding is not None:
                description = self._grounding.judged(evidence, description)
            yield description

    def controls(self, evidence: Evidence, unit: int, text: str) -> list[str]:
        """Different labels, of other units; the same labels in every call."""
        others = [c.text for c in self._pool(evidence) if c.unit != unit and c.text != text]
        count = min(CONTROLS, len(others))
        chosen = np.random.default_rng(unit).choice(len(others), count, replace=False)
        return [others[i] for i in sorted(chosen.tolist())]

    def _pool(self, evidence: Evidence) -> list[_Control]:
        if evidence.identity not in self._pools:
            descriptions = self.describer.describe(evidence, spread(evidence, _POOL))
            texts = {d.text: d.feature for d in descriptions if d.text is not None}
            self._pools[evidence.identity] = [_Control(unit, t) for t, unit in texts.items()]
        return self._pools[evidence.identity]

    def _scored(
        self,
        scorer: Scorer,
        evidence: Evidence,
        description: Description,
        text: str,
        metrics: Sequence[Metric],
        *,
        decides: bool,
    ) -> Description:
        unit = description.feature
        controls = self.controls(evidence, unit, text)
        measured = tuple(dict.fromkeys((*metrics, JUDGED_BY)))
        scores = scorer.score(evidence, unit, text, measured, control_texts=controls)
        reason = abstain(scores) if decides else ""
        objective = description.scores[0].value if description.scores else 0.0
        return replace(
            description,
            text=None if reason else text,
            abstained=reason,
            scores=(*description.scores, *scores),
            candidates=description.candidates or ((text, objective),),
        )

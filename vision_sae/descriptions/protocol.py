"""The types of labelling: a description, its scores, and the describer that writes it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from vision_sae.evidence.protocol import Evidence

Metric = Literal[
    "pmi",
    "detection_auc",
    "detection_balanced_accuracy",
    "fuzzing_auc",
    "simulation_pearson",
    "intruder_accuracy",
    "cosy_auc",
    "cosy_mean_difference",
    "causal",
    "correlation",
    "auprc",
    "f1",
    "iou",
    "precision",
    "lift",
    "silent_share",
]
"""Names of quality measures; ``description.proto`` defines each."""
Negatives = Literal["", "random", "hard"]
"""The counter-examples of a score: none, a random draw from all silent pictures, or the silent
pictures most similar to the firing pictures."""


JUDGED_BY = "judged_by"
"""The detail of a description that names the judge that confirmed the text."""


@dataclass(frozen=True)
class Score:
    """One measured quality of a description."""

    metric: Metric
    value: float
    n: int
    """Number of independent pictures (or trials) that the score rests on."""
    lower: float | None = None
    """Lower end of the 95 % bootstrap interval; None when no interval was computed."""
    upper: float | None = None
    """Upper end of the same interval."""
    control: float | None = None
    """The same score for texts of other units; None when no control was measured."""
    negatives: Negatives = ""
    judge: str = ""
    """The judge of the text: ``captions``, ``pixels``, ``scenes``, ``steering``, or the name of a
    contrastive model. Empty: the contrastive model of the configuration, which may also have
    chosen the text."""


@dataclass(frozen=True)
class Description:
    """A natural-language label of a unit, or an explicit abstention."""

    feature: int
    """Number of the unit."""
    text: str | None
    """None when the describer abstains."""
    abstained: str
    """The reason of the abstention; empty when there is a text."""
    describer: str
    describer_version: int
    scores: tuple[Score, ...] = ()
    evidence: tuple[int, ...] = ()
    """Patches (rows of the data set) of the exemplars that the describer used."""
    details: dict[str, Any] = field(default_factory=dict)
    """Further facts from the describer, for example its words and their p-values."""
    candidates: tuple[tuple[str, float], ...] = ()
    """Texts that the describer considered and their objective, best first."""

    @property
    def judged_by(self) -> str:
        """The judge that confirmed the text, by its whole interval; `JUDGED_BY` in ``details``.

        A judge has no part in choosing the text. Empty: no judge confirmed the text, a guess.
        """
        return str(self.details.get(JUDGED_BY, ""))

    @property
    def is_guess(self) -> bool:
        """Whether there is a text without an independent judge's confirmation."""
        return self.text is not None and not self.judged_by


class Describer(Protocol):
    """Turns units into descriptions.

    A description depends on the evidence alone: the order of the units and the other units of a
    call make no difference.
    """

    name: str
    version: int

    def describe(self, evidence: Evidence, units: Iterable[int]) -> Iterator[Description]:
        """Descriptions of ``units`` in order."""
        ...

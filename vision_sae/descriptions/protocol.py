"""What every describer takes and returns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from vision_sae.descriptions.evidence.protocol import Evidence

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
"""Definitions of quality; ``description.proto`` tells what each means."""
Negatives = Literal["", "random", "hard"]
"""What the counter-examples of a score were: none, drawn from all silent pictures, or the silent
pictures that resemble the firing ones most."""


JUDGED_BY = "judged_by"
"""The detail of a description that names the judge who confirmed it."""


@dataclass(frozen=True)
class Score:
    """One measured quality of a description."""

    metric: Metric
    value: float
    n: int
    """Number of independent pictures (or trials) it was measured on."""
    lower: float | None = None
    """Lower end of the 95 % bootstrap interval; None when none was computed."""
    upper: float | None = None
    """Upper end of the same."""
    control: float | None = None
    """The same score of texts taken from other units; None when it was not run."""
    negatives: Negatives = ""
    judge: str = ""
    """What looked up the truth of the text: ``captions``, ``pixels``, ``scenes``, ``steering``, or
    the name of a contrastive model. Empty: the contrastive model of the configuration, which may
    be the one that chose the text."""


@dataclass(frozen=True)
class Description:
    """A natural-language label of a unit, or an explicit abstention."""

    feature: int
    """Number of the unit."""
    text: str | None
    """None when the describer abstains."""
    abstained: str
    """Why it abstained; empty when it did not."""
    describer: str
    describer_version: int
    scores: tuple[Score, ...] = ()
    evidence: tuple[int, ...] = ()
    """Patches (rows of the data set) of the exemplars it was made from."""
    details: dict[str, Any] = field(default_factory=dict)
    """What the describer wants to say beyond that, for example its words and their p-values."""
    candidates: tuple[tuple[str, float], ...] = ()
    """Texts it considered and their objective, best first."""

    @property
    def judged_by(self) -> str:
        """The judge that the text passed, by its whole interval, and that had no part in choosing
        it; `JUDGED_BY` among the details. Empty: none did, and the text is a guess."""
        return str(self.details.get(JUDGED_BY, ""))

    @property
    def is_guess(self) -> bool:
        """Whether there is a text that no independent judge has confirmed."""
        return self.text is not None and not self.judged_by


class Describer(Protocol):
    """Turns units into descriptions.

    A description depends on nothing but the evidence: not on which units are asked for together,
    nor in which order.
    """

    name: str
    version: int

    def describe(self, evidence: Evidence, units: Iterable[int]) -> Iterator[Description]:
        """Descriptions of ``units`` in order."""
        ...

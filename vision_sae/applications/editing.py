"""Editing: remove units from a model by their labels (Hernandez et al. 2022, section 7).

The test is robustness against painted-on words: accuracy on plain pictures and on the same pictures
with the name of a wrong class painted on. Accuracy is measured before the edit, after the units
that see text are removed, and after as many random units are removed. A word costs accuracy by its
meaning or by covering the picture. The edit can only undo the first, so the pictures that are
classified as the word on them are counted separately.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np
from torch import Tensor

from vision_sae.applications.units import LabelledUnit, UnitSet
from vision_sae.descriptions.matching import matches
from vision_sae.evaluation.class_folders import PaintedOver
from vision_sae.evaluation.tasks import Classified, Task, accuracy
from vision_sae.models.protocol import Model
from vision_sae.steering.ablation import edited

TEXT_WORDS = ("text", "word", "letter", "writing", "number")
"""Words in the labels of units that see text."""


@dataclass(frozen=True)
class Robustness:
    """Accuracy on the same pictures without and with a painted word."""

    plain: float
    painted: float
    misled: float
    """Share of painted pictures that are classified as the word on them."""


@dataclass(frozen=True)
class Editing:
    """The effect of removing some units."""

    units: int
    before: Robustness
    after: Robustness
    random: Robustness
    """Robustness after removing as many random units of the same sites, mean over draws."""
    random_units: int
    """The number of random units; fewer than ``units`` where too few others fire."""
    guesses: int
    """The number of removed units whose label no independent judge has confirmed."""

    @property
    def recovered(self) -> float:
        """Share of the accuracy lost to painted-on words that the edit restores; NaN without a
        loss."""
        return self._share(self.after)

    @property
    def random_recovered(self) -> float:
        """`recovered` for random units."""
        return self._share(self.random)

    def _share(self, edited_: Robustness) -> float:
        lost = self.before.plain - self.before.painted
        return (edited_.painted - self.before.painted) / lost if lost > 0 else float("nan")


def _fraction(of: Tensor) -> float:
    return float(of.float().mean())


def units_that_say(units: Sequence[LabelledUnit], words: Sequence[str]) -> list[LabelledUnit]:
    """The units whose label holds one of the words."""
    return [unit for unit in units if any(matches(word, unit.text) for word in words)]


def edit(
    model: Model,
    task: Task,
    plain: Classified,
    painted: PaintedOver,
    unit_set: UnitSet,
    chosen: Sequence[LabelledUnit],
    *,
    draws: int = 3,
    seed: int = 0,
) -> Editing:
    """Remove ``chosen`` units from the model and measure its robustness, against random units."""

    def robustness(units: Sequence[LabelledUnit]) -> Robustness:
        with edited(model, unit_set.without(units)):
            predicted = task.predict(model, painted.pictures.pixels)
            return Robustness(
                accuracy(task, model, plain),
                _fraction(predicted == painted.pictures.classes),
                _fraction(predicted == painted.words),
            )

    others = [unit_set.at_random(chosen, seed + draw) for draw in range(draws)]
    control = [robustness(units) for units in others]
    return Editing(
        units=len(chosen),
        before=robustness([]),
        after=robustness(chosen),
        random=Robustness(*np.mean([astuple(measured) for measured in control], axis=0).tolist()),
        random_units=len(others[0]),
        guesses=sum(unit.is_guess for unit in chosen),
    )

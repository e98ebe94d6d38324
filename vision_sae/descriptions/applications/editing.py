"""Editing: take units out of a model by what their labels say (Hernandez et al. 2022, section 7).

The test is robustness against painted-on words: accuracy on plain pictures and on the same pictures
with the name of a wrong class painted on, before and after the units that see text are removed,
and after as many random units are. Words cost accuracy by what they say or by what they cover; only
the first can be given back, so it is counted how many pictures are taken for the word on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np
from torch import Tensor

from vision_sae.descriptions.applications.units import LabelledUnit, UnitSet
from vision_sae.descriptions.matching import matches
from vision_sae.evaluation.class_folders import PaintedOver
from vision_sae.evaluation.tasks import Classified, Task, accuracy
from vision_sae.models.protocol import Model
from vision_sae.steering.ablation import edited

TEXT_WORDS = ("text", "word", "letter", "writing", "number")
"""What labels of units that see text say."""


@dataclass(frozen=True)
class Robustness:
    """Accuracy on the same pictures, plain and painted on."""

    plain: float
    painted: float
    misled: float
    """Share of painted pictures that get the class whose name is on them."""


@dataclass(frozen=True)
class Editing:
    """What removing some units did."""

    units: int
    before: Robustness
    after: Robustness
    random: Robustness
    """After removing as many random units of the same sites, mean over draws."""
    random_units: int
    """How many these were: fewer than ``units`` where too few others fire."""
    guesses: int
    """Removed units whose label no independent judge has confirmed."""

    @property
    def recovered(self) -> float:
        """Share of the accuracy lost to painted-on words that the edit gives back; NaN if none was
        lost."""
        return self._share(self.after)

    @property
    def random_recovered(self) -> float:
        """The same for random units."""
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
            said = task.predict(model, painted.pictures.pixels)
            return Robustness(
                accuracy(task, model, plain),
                _fraction(said == painted.pictures.classes),
                _fraction(said == painted.words),
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

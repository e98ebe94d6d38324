"""Analysis: which kinds of unit does a model need? (Hernandez et al. 2022, section 5)

Units are grouped by the topics of their labels. Each group is switched off, and the accuracy of a
task is compared with the accuracy when as many random units of the same sites are switched off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from vision_sae.applications.units import LabelledUnit, UnitSet
from vision_sae.descriptions.matching import matches
from vision_sae.evaluation.tasks import Classified, Task, accuracy
from vision_sae.models.protocol import Model
from vision_sae.steering.ablation import edited

KINDS: Mapping[str, tuple[str, ...]] = {
    "colour": (
        *("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white"),
        *("grey", "beige", "colourful"),
    ),
    "texture": ("striped", "dotted", "checkered", "fur", "wood", "metal", "pattern", "wool"),
    "shape": ("round", "circle", "square", "triangle", "star", "heart", "ring", "line", "edge"),
    "text": ("text", "word", "letter", "number", "sign", "writing"),
    "animal": ("animal", "bird", "cat", "dog", "fish", "insect", "horse", "bear"),
    "person": ("person", "face", "man", "woman", "hand", "eye", "hair", "people"),
    "plant": ("plant", "flower", "tree", "leaf", "fruit", "grass"),
    "food": ("food", "fruit", "vegetable", "bread", "cake", "drink"),
    "background": ("background", "sky", "wall", "water", "cloud"),
}
"""Kinds of label, and the words that mark each kind; a unit may belong to several kinds."""


@dataclass(frozen=True)
class GroupEffect:
    """The effect of switching one group of units off on a task."""

    kind: str
    units: int
    accuracy: float
    """The accuracy without the group."""
    random_mean: float
    """The accuracy without as many random units of the same sites, mean over draws."""
    random_std: float
    """Standard deviation over the draws."""
    random_units: int
    """The number of random units; fewer than ``units`` where too few others fire."""
    guesses: int
    """The number of units of the group whose label no independent judge has confirmed."""

    @property
    def excess(self) -> float:
        """The accuracy that the group costs beyond the cost of random units."""
        return self.random_mean - self.accuracy


@dataclass(frozen=True)
class Analysis:
    """The accuracy of the whole model, and the effect of each kind of unit."""

    accuracy: float
    pictures: int
    effects: list[GroupEffect]
    """The most harmful first; kinds without units are left out."""


def group_by_kind(
    units: Sequence[LabelledUnit], kinds: Mapping[str, Sequence[str]] = KINDS
) -> dict[str, list[LabelledUnit]]:
    """{kind: units whose label holds one of its words}, without empty kinds."""
    groups = {
        kind: [u for u in units if any(matches(word, u.text) for word in words)]
        for kind, words in kinds.items()
    }
    return {kind: group for kind, group in groups.items() if group}


def analyse(
    model: Model,
    task: Task,
    pictures: Classified,
    unit_set: UnitSet,
    *,
    kinds: Mapping[str, Sequence[str]] = KINDS,
    draws: int = 3,
    seed: int = 0,
    progress: bool = True,
) -> Analysis:
    """Switch every kind of unit off in turn, each against ``draws`` random groups of its size."""

    def without(units: Sequence[LabelledUnit]) -> float:
        with edited(model, unit_set.without(units)):
            return accuracy(task, model, pictures)

    effects = []
    groups = group_by_kind(unit_set.units, kinds)
    for kind, group in tqdm(groups.items(), desc="analyse", unit="kind", disable=not progress):
        others = [unit_set.at_random(group, seed + draw) for draw in range(draws)]
        control = [without(units) for units in others]
        effects.append(
            GroupEffect(
                kind,
                len(group),
                without(group),
                float(np.mean(control)),
                float(np.std(control, ddof=1)) if draws > 1 else 0.0,
                len(others[0]),
                sum(unit.is_guess for unit in group),
            )
        )
    effects.sort(key=lambda effect: -effect.excess)
    return Analysis(accuracy(task, model, pictures), len(pictures.pixels), effects)

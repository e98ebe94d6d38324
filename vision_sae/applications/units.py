"""Labelled units of one model, and the edits that switch units off."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vision_sae.dictionaries.protocol import Dictionary
from vision_sae.models.hooks import Edit
from vision_sae.steering.ablation import without_features, without_neurons


@dataclass(frozen=True)
class LabelledUnit:
    """A unit and its label."""

    site: str
    index: int
    text: str
    """Empty for a unit without a label."""
    judged_by: str = ""
    """The judge who confirmed the label; empty for a guess, and for a unit without a label."""

    @property
    def is_guess(self) -> bool:
        """Whether the unit has a label that no independent judge has confirmed."""
        return bool(self.text) and not self.judged_by


@dataclass(frozen=True)
class UnitSet:
    """All labelled units of some sites of one model.

    The units of a site with a dictionary are features; those of other sites are neurons.
    """

    units: Sequence[LabelledUnit]
    dictionaries: Mapping[str, Dictionary]
    """{site: its dictionary}, without sites of raw neurons."""
    firing: Mapping[str, Sequence[int]]
    """{site: its units that fire at all, labelled or not}; random units are drawn from these."""
    special: int
    """Leading tokens of the model that are no patches."""

    def without(self, units: Iterable[LabelledUnit]) -> dict[str, Edit]:
        """The edits that switch these units off: {site: edit}."""
        of_site: dict[str, list[int]] = defaultdict(list)
        for unit in units:
            of_site[unit.site].append(unit.index)
        return {site: self._without(site, indices) for site, indices in of_site.items()}

    def _without(self, site: str, indices: list[int]) -> Edit:
        if site in self.dictionaries:
            return without_features(self.dictionaries[site], indices, self.special)
        return without_neurons(indices)

    def at_random(self, like: Sequence[LabelledUnit], seed: int) -> list[LabelledUnit]:
        """As many other units of each site as ``like`` has there, drawn without replacement.

        The result is shorter than ``like`` where fewer others fire.
        """
        random = np.random.default_rng(seed)
        taken: dict[str, set[int]] = defaultdict(set)
        for unit in like:
            taken[unit.site].add(unit.index)
        known = {(unit.site, unit.index): unit for unit in self.units}
        drawn: list[LabelledUnit] = []
        for site, indices in taken.items():
            others = [index for index in self.firing[site] if index not in indices]
            picks = random.choice(others, min(len(indices), len(others)), replace=False)
            drawn += [
                known.get((site, i), LabelledUnit(site, i, "")) for i in sorted(picks.tolist())
            ]
        return drawn

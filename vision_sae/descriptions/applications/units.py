"""Labelled units of one model, and how each is switched off."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vision_sae.dictionaries.protocol import Dictionary
from vision_sae.models.hooks import Edit
from vision_sae.steering.ablation import without_features, without_neurons


@dataclass(frozen=True)
class LabelledUnit:
    """A unit and what is said of it."""

    site: str
    index: int
    text: str


@dataclass(frozen=True)
class UnitSet:
    """All labelled units of some sites of one model.

    A site with a dictionary has features as units, one without has its neurons.
    """

    units: Sequence[LabelledUnit]
    dictionaries: Mapping[str, Dictionary]
    """{site: its dictionary}; sites of raw neurons are not in it."""
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

        Where a site has too few others, all of them.
        """
        random = np.random.default_rng(seed)
        taken, wanted = set(like), Counter(unit.site for unit in like)
        drawn: list[LabelledUnit] = []
        for site, count in wanted.items():
            others = [u for u in self.units if u.site == site and u not in taken]
            picks = random.choice(len(others), min(count, len(others)), replace=False)
            drawn += [others[i] for i in sorted(picks.tolist())]
        return drawn

"""Absorption: a feature that stays silent where a more specific one speaks for it.

The parent feature is the one of best F1 for the parent concept. Its gap is::

    P(parent feature on | parent, no child) - P(parent feature on | parent and child)

A feature that means its concept fires alike in both cases: gap 0. One that children have absorbed
fires only where no child does: gap up to 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import NamedTuple

import torch
from torch import Tensor

from tests.planted.dictionaries import PlantedWorld
from vision_sae.dictionaries.protocol import Codes, Dictionary
from vision_sae.errors import InvalidInputError

LEAST_SEEDS = 3
"""Training is luck in part: a gap of fewer dictionaries than this is not reported."""


class Absorption(NamedTuple):
    """How far one parent concept is absorbed in one dictionary."""

    feature: int
    """The parent feature: of best F1 for the concept, the first where several are."""
    f1: float
    """Its F1. Where it is low no feature means the concept, and the gap says little."""
    on_without_child: float
    """P(parent feature on | parent, no child)."""
    on_with_child: float
    """P(parent feature on | parent and child)."""

    @property
    def gap(self) -> float:
        """``on_without_child - on_with_child``, in [-1, 1]."""
        return self.on_without_child - self.on_with_child


class AbsorptionCounter:
    """Counts, over batches of rows, what every feature does where a concept is and is not."""

    def __init__(self, width: int) -> None:
        self._fired = torch.zeros(width, dtype=torch.int64)
        self._alone, self._joined = torch.zeros_like(self._fired), torch.zeros_like(self._fired)
        self._rows_alone = self._rows_joined = 0

    def add(self, codes: Codes, parent: Tensor, child: Tensor) -> None:
        """Add rows: their codes, and whether each holds the concept and any child of it (N)."""
        alone, joined = parent & ~child, parent & child
        self._fired += self._firing(codes, torch.ones_like(parent))
        self._alone += self._firing(codes, alone)
        self._joined += self._firing(codes, joined)
        self._rows_alone += int(alone.sum())
        self._rows_joined += int(joined.sum())

    def _firing(self, codes: Codes, rows: Tensor) -> Tensor:
        """On how many of ``rows`` (N), a mask, each feature fires (F)."""
        active = (codes.values > 0) & rows[:, None]
        return torch.bincount(codes.indices[active], minlength=len(self._fired))

    def result(self) -> Absorption:
        """The absorption; raises `InvalidInputError` without rows of both cases."""
        if not self._rows_alone or not self._rows_joined:
            raise InvalidInputError(
                f"of the rows with the parent concept {self._rows_alone} have no child and "
                f"{self._rows_joined} have one; the gap needs both: give more rows",
                field="rows",
            )
        true = self._alone + self._joined
        f1 = 2 * true.double() / (self._fired + self._rows_alone + self._rows_joined)
        feature = int(f1.argmax())
        return Absorption(
            feature,
            float(f1[feature]),
            int(self._alone[feature]) / self._rows_alone,
            int(self._joined[feature]) / self._rows_joined,
        )


@dataclass(frozen=True)
class AbsorptionReport:
    """The absorption of every parent of a planted world, in every dictionary."""

    parents: tuple[int, ...]
    """The atoms that have children."""
    found: tuple[tuple[Absorption, ...], ...]
    """By dictionary, then by parent."""

    @property
    def gaps(self) -> tuple[float, ...]:
        """The mean gap of each dictionary over the parents."""
        return tuple(mean(a.gap for a in row) for row in self.found)

    @property
    def mean(self) -> float:
        """The mean of `gaps`."""
        return mean(self.gaps)

    @property
    def standard_error(self) -> float:
        """Of the mean, from the spread between dictionaries."""
        return stdev(self.gaps) / math.sqrt(len(self.gaps))


def planted_absorption(
    world: PlantedWorld, dictionaries: Sequence[Dictionary], *, rows: int = 32_768, seed: int = 1
) -> AbsorptionReport:
    """Measure dictionaries, trained alike with different seeds, on fresh rows of their world.

    Raises `InvalidInputError` for fewer than `LEAST_SEEDS` dictionaries, for a world without
    children, and for too few rows.
    """
    if len(dictionaries) < LEAST_SEEDS:
        raise InvalidInputError(
            f"{len(dictionaries)} dictionaries cannot tell absorption from luck; train at least "
            f"{LEAST_SEEDS} with different seeds",
            field="dictionaries",
        )
    parents = tuple(sorted(set(world.parents.tolist()) - {-1}))
    if not parents:
        raise InvalidInputError(
            "the world has no hierarchy; plant one with children", field="children"
        )
    found = (_of(world, parents, dictionary, rows, seed) for dictionary in dictionaries)
    return AbsorptionReport(parents, tuple(found))


def _of(
    world: PlantedWorld, parents: Iterable[int], dictionary: Dictionary, rows: int, seed: int
) -> tuple[Absorption, ...]:
    """The absorption of each of ``parents`` in one dictionary."""
    counters = {parent: AbsorptionCounter(dictionary.width) for parent in parents}
    for vectors, activations in world.blocks(rows, seed):
        with torch.inference_mode():
            codes = dictionary.encode(vectors)
        on = activations > 0
        for parent, counter in counters.items():
            counter.add(codes, on[:, parent], on[:, world.children(parent)].any(1))
    return tuple(counter.result() for counter in counters.values())

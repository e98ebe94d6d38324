"""Site vectors composed of known atoms: the world in which a dictionary's answers can be marked.

A row is ``x = a @ atoms + noise`` with sparse ``a >= 0``. Which atoms are on follows a power law of
frequencies, a hierarchy (a child is on only where its parent is) and groups that switch on
together, so that absorption, matching, families and co-occurrence have a right answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vision_sae.errors import InvalidInputError

_BLOCK = 4096
"""Rows drawn at a time: bounds what sampling needs beyond its result."""
_CHILD_SHARE = 0.5
"""A child is at most this often on where its parent is, so that parents are seen without it."""


class Sample(NamedTuple):
    """Rows of a planted world."""

    vectors: Tensor
    """Site vectors (N, D), float32."""
    activations: Tensor
    """How strongly each atom is in each row (N, A), float32, >= 0; 0 where it is off."""


@dataclass(frozen=True, eq=False)
class PlantedWorld:
    """Known atoms, and how often and with whom each is on. Atoms descend in frequency."""

    atoms: Tensor
    """Unit directions (A, D), float32."""
    parents: Tensor
    """The parent of each atom (A), int64, always a smaller number; -1 for roots."""
    groups: Tensor
    """The group of each atom (A), int64; a child is of its parent's group."""
    frequencies: Tensor
    """Probability that each atom is on (A), float64, exact."""
    group_rate: float
    """Probability that a group is switched on."""
    lift: float
    """How many times as often a root is on while its group is, compared with its frequency."""
    noise: float
    """Standard deviation of the Gaussian noise on every dimension."""
    seed: int

    @cached_property
    def depth(self) -> Tensor:
        """Number of ancestors of each atom (A), int64."""
        depth: list[int] = []
        for parent in self.parents.tolist():
            depth.append(depth[parent] + 1 if parent >= 0 else 0)
        return torch.tensor(depth)

    def children(self, parent: int) -> list[int]:
        """The atoms whose parent is ``parent``."""
        return torch.nonzero(self.parents == parent).flatten().tolist()

    def blocks(self, rows: int, seed: int = 0) -> Iterator[Sample]:
        """``rows`` rows in blocks of a fixed size, so that memory stays bounded."""
        for number, start in enumerate(range(0, rows, _BLOCK)):
            sample = self._block(np.random.default_rng([self.seed, seed, number]))
            yield Sample(*(tensor[: rows - start] for tensor in sample))

    def sample(self, rows: int, seed: int = 0) -> Sample:
        """``rows`` rows; the first of them are the same however many are asked for."""
        if rows < 1:
            raise InvalidInputError(f"cannot sample {rows} rows; ask for 1 or more", field="rows")
        parts = list(self.blocks(rows, seed))
        return Sample(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))

    def _block(self, random: np.random.Generator) -> Sample:
        groups, parents = self.groups.numpy(), self.parents.numpy()
        frequency, depth = self.frequencies.numpy(), self.depth.numpy()
        switched = random.random((_BLOCK, groups.max() + 1)) < self.group_rate
        quiet = (1 - self.group_rate * self.lift) / (1 - self.group_rate)
        draw = random.random((_BLOCK, len(frequency)), dtype=np.float32)
        on = draw < frequency * np.where(switched[:, groups], self.lift, quiet)
        for level in range(1, depth.max() + 1):
            atoms = np.flatnonzero(depth == level)
            parent = parents[atoms]
            on[:, atoms] = on[:, parent] & (draw[:, atoms] < frequency[atoms] / frequency[parent])
        strength = random.uniform(0.5, 1.5, draw.shape).astype(np.float32)
        activations = torch.from_numpy(np.where(on, strength, np.float32(0)))
        noise = random.normal(0, self.noise, (_BLOCK, self.atoms.shape[1])).astype(np.float32)
        return Sample(activations @ self.atoms + torch.from_numpy(noise), activations)


def _directions(count: int, dim: int, random: np.random.Generator) -> NDArray[np.float32]:
    """Random unit rows (count, dim); orthonormal where that many fit."""
    rows: NDArray[np.float64] = random.normal(size=(count, dim))
    if count <= dim:
        rows = np.linalg.qr(rows.T)[0].T
    unit: NDArray[np.float32] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype("f4")
    return unit


def _hierarchy(
    frequency: NDArray[np.float64], children: int, random: np.random.Generator
) -> NDArray[np.int64]:
    """Give ``children`` of the atoms a parent that is on at least twice as often."""
    # Frequencies descend, so the eligible parents of an atom are the first so many.
    eligible = np.searchsorted(-frequency, -frequency / _CHILD_SHARE, side="right")
    candidates = np.flatnonzero(eligible)
    if children > len(candidates):
        raise InvalidInputError(
            f"only {len(candidates)} of {len(frequency)} atoms are rare enough to have a parent, "
            f"not {children}; lower `children` or raise `exponent`",
            field="children",
        )
    parents = np.full(len(frequency), -1, dtype=np.int64)
    for atom in random.choice(candidates, children, replace=False):
        parents[atom] = random.integers(eligible[atom])
    return parents


def planted_world(
    seed: int,
    *,
    atoms: int = 64,
    dim: int = 32,
    active: float = 4.0,
    exponent: float = 0.5,
    children: int = 16,
    group_size: int = 4,
    group_rate: float = 0.25,
    lift: float = 3.0,
    noise: float = 0.02,
) -> PlantedWorld:
    """A world of ``atoms`` atoms in ``dim`` dimensions, the same for the same arguments.

    Atom r of A is on with probability proportional to ``(r + 1) ** -exponent``, ``active`` atoms
    on average. ``children`` of them have a parent; the other atoms, the roots, are dealt into
    groups of ``group_size``. A group is switched on with probability ``group_rate``; meanwhile its
    roots are on ``lift`` times as often as overall. ``lift=1`` makes roots independent. Strengths
    are uniform on [0.5, 1.5]. ``noise`` is the standard deviation on every dimension.

    Raises `InvalidInputError` for arguments that no probabilities satisfy.
    """
    for name, count in {"atoms": atoms, "dim": dim, "group_size": group_size}.items():
        if count < 1:
            raise InvalidInputError(f"{name} is {count}; it must be 1 or more", field=name)
    random = np.random.default_rng(seed)
    weights = np.arange(1, atoms + 1) ** -float(exponent)
    frequency = active * weights / weights.sum()
    if not 0 < group_rate < 1 or not 1 <= lift <= 1 / group_rate:
        raise InvalidInputError(
            f"group_rate {group_rate} must lie between 0 and 1, and lift {lift} between 1 and "
            "1 / group_rate",
            field="lift",
        )
    if frequency[0] * lift > 1:
        raise InvalidInputError(
            f"the most frequent atom would be on with probability {frequency[0] * lift:.3g}; "
            "lower `active`, `exponent` or `lift`",
            field="active",
        )
    parents = _hierarchy(frequency, children, random)
    roots = np.flatnonzero(parents < 0)
    groups = np.empty(atoms, dtype=np.int64)
    groups[random.permutation(roots)] = np.arange(len(roots)) // group_size
    for atom in np.flatnonzero(parents >= 0):  # ascending: a parent's group is known before
        groups[atom] = groups[parents[atom]]
    return PlantedWorld(
        atoms=torch.from_numpy(_directions(atoms, dim, random)),
        parents=torch.from_numpy(parents),
        groups=torch.from_numpy(groups),
        frequencies=torch.from_numpy(frequency),
        group_rate=group_rate,
        lift=lift,
        noise=noise,
        seed=seed,
    )

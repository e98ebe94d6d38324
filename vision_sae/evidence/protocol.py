"""The interface of evidence, common to a bundle's features and a layer's raw neurons.

A *unit* is one feature of a dictionary or one neuron of a site. Describers and scores access units
only through this protocol, so each of them works on both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64, Integer

from vision_sae.activations.store import ImageRecord
from vision_sae.models.grid import Geometry, PatchGrid

FIRINGS = 48
"""The most pictures with a map that are kept of a unit: half to describe it, half to score it."""


class Firing(NamedTuple):
    """One picture in which a unit fires."""

    image: int
    """Number of the picture in the data set."""
    patch: int
    """Row, in the whole data set, of the patch that fires the unit most in this picture."""
    activation: float
    """The activation on this patch, > 0."""
    map: Float32[np.ndarray, "R C"]
    """Activations of all patches of the picture, 0 where the unit is silent."""
    mask: Bool[np.ndarray, "R C"]
    """Patches at or above the unit's mask threshold; never empty."""


class Places(NamedTuple):
    """Patches on which a unit fires."""

    rows: Integer[np.ndarray, " n"]
    """Row numbers of the patches in the whole data set."""
    values: Float[np.ndarray, " n"]
    """Activations, > 0, descending."""


class Evidence(Protocol):
    """The activations of the units of one site over one data set."""

    @property
    def name(self) -> str:
        """``dictionaries/{dictionary}`` or ``models/{model}/sites/{site}``."""
        ...

    @property
    def identity(self) -> str:
        """Hex SHA-256 that changes whenever the evidence changes."""
        ...

    @property
    def data_sha256(self) -> str:
        """Hex SHA-256 of the pictures."""
        ...

    @property
    def site(self) -> str:
        """The site of the model that the units belong to."""
        ...

    @property
    def images(self) -> Sequence[ImageRecord]:
        """The pictures in row order."""
        ...

    @property
    def grid(self) -> PatchGrid:
        """The patch grid of the model that the units belong to."""
        ...

    @property
    def width(self) -> int:
        """Number of units."""
        ...

    def thumbnail(self, image: int) -> bytes:
        """JPEG thumbnail of a picture."""
        ...

    def geometry(self, image: int) -> Geometry:
        """The resizing and cropping of a picture for the model."""
        ...

    def peaks(self, unit: int) -> Float32[np.ndarray, " N"]:
        """The strongest activation in each picture; 0 where the unit is silent."""
        ...

    def firings(self, unit: int) -> list[Firing]:
        """The pictures that fire the unit most, strongest first, at most `FIRINGS`."""
        ...

    def places(self, unit: int) -> Places:
        """Every patch that is known to fire the unit, strongest first."""
        ...

    def look_alikes(self, unit: int, count: int) -> Int64[np.ndarray, " n"]:
        """At most ``count`` silent pictures that resemble the firing ones, the nearest first."""
        ...


class Split(NamedTuple):
    """A unit's firings in two parts that share no source; both strongest first."""

    describe: list[Firing]
    """The firings for describers."""
    score: list[Firing]
    """The firings for scores of the descriptions."""


def split(evidence: Evidence, unit: int) -> Split:
    """Split a unit's firings between describers and scores.

    Pictures of one source (crops of one photograph, say) go to one side. Sources alternate between
    the sides, by the rank of their strongest picture, so both sides cover the unit's whole range.
    """
    sides: tuple[list[Firing], list[Firing]] = ([], [])
    side_of: dict[str, int] = {}
    for firing in evidence.firings(unit):
        origin = evidence.images[firing.image].origin
        side = side_of.setdefault(origin, len(side_of) % 2)
        sides[side].append(firing)
    return Split(*sides)


def silent(evidence: Evidence, unit: int) -> Bool[np.ndarray, " N"]:
    """Whether the unit counts as silent in each picture: its peak is at most the median peak.

    A sparse feature has a median of 0, so it is silent exactly where it never fires.
    """
    peaks = evidence.peaks(unit)
    return np.asarray(peaks <= np.median(peaks), dtype=np.bool_)


def spread(evidence: Evidence, most: int) -> list[int]:
    """At most ``most`` units that fire, evenly spaced over all units, and the same in every run.

    The spacing is refined until half of ``most`` are found or all units have been examined, because
    many units may be dead.
    """
    firing: list[int] = []
    examined: set[int] = set()
    while len(firing) < most / 2 and len(examined) < evidence.width:
        finer = spaced(evidence.width, max(most, 2 * len(examined))).tolist()
        firing += [unit for unit in finer if unit not in examined and evidence.firings(unit)]
        examined.update(finer)
    firing.sort()
    return [firing[i] for i in spaced(len(firing), most)]


def spaced(count: int, most: int) -> Int64[np.ndarray, " n"]:
    """At most ``most`` of the numbers below ``count``, evenly spaced, and the same in every run."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))

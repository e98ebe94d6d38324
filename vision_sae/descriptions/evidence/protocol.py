"""What every source of evidence gives: a bundle's features and a layer's raw neurons alike.

A *unit* is one feature of a dictionary or one neuron of a site. Describers and scorers see units
through this protocol alone, so each of them works on both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from vision_sae.activations.store import ImageRecord
from vision_sae.models.grid import Geometry, PatchGrid

FIRINGS = 48
"""The most pictures of a unit that are kept with a map: half to describe it, half to score it."""


class Firing(NamedTuple):
    """One picture in which a unit fires."""

    image: int
    """Number of the picture in the data set."""
    patch: int
    """Row of its strongest patch in the whole data set."""
    activation: float
    """The activation there, > 0."""
    map: NDArray[np.float32]
    """Activations of all patches of the picture (rows, cols), 0 where silent."""
    mask: NDArray[np.bool_]
    """Patches at or above the unit's mask threshold (rows, cols); never empty."""


class Places(NamedTuple):
    """Patches in which a unit fires."""

    rows: NDArray[np.integer]
    """Rows of the whole data set (T)."""
    values: NDArray[np.floating]
    """Activations, > 0, descending (T)."""


class Evidence(Protocol):
    """What is known of the units of one site over one data set."""

    @property
    def name(self) -> str:
        """``dictionaries/{dictionary}`` or ``models/{model}/sites/{site}``."""
        ...

    @property
    def identity(self) -> str:
        """Hex SHA-256 that changes with anything else here."""
        ...

    @property
    def data_sha256(self) -> str:
        """Of the pictures."""
        ...

    @property
    def site(self) -> str:
        """The site whose vectors the units are made of."""
        ...

    @property
    def images(self) -> Sequence[ImageRecord]:
        """The pictures in row order."""
        ...

    @property
    def grid(self) -> PatchGrid:
        """Of the model that the units belong to."""
        ...

    @property
    def width(self) -> int:
        """Number of units."""
        ...

    def thumbnail(self, image: int) -> bytes:
        """JPEG thumbnail of a picture."""
        ...

    def geometry(self, image: int) -> Geometry:
        """How a picture was resized and cropped for the model."""
        ...

    def peaks(self, unit: int) -> NDArray[np.float32]:
        """The strongest activation in each picture (N); 0 where the unit is silent."""
        ...

    def firings(self, unit: int) -> list[Firing]:
        """The pictures that fire the unit most, strongest first, at most `FIRINGS`."""
        ...

    def places(self, unit: int) -> Places:
        """Every patch that is known to fire the unit, strongest first."""
        ...

    def look_alikes(self, unit: int, count: int) -> NDArray[np.int64]:
        """At most ``count`` silent pictures that resemble the firing ones, the nearest first."""
        ...


class Split(NamedTuple):
    """A unit's firings in two parts that share no source; both strongest first."""

    describe: list[Firing]
    """What describers may look at."""
    score: list[Firing]
    """What the descriptions are scored on."""


def split(evidence: Evidence, unit: int) -> Split:
    """Deal the unit's firings out to its describers and scorers.

    Pictures of one source (crops of one photograph, say) go to one side; sources alternate by the
    rank of their strongest picture, so both sides see the unit's whole range.
    """
    sides: tuple[list[Firing], list[Firing]] = ([], [])
    side_of: dict[str, int] = {}
    for firing in evidence.firings(unit):
        origin = evidence.images[firing.image].origin
        side = side_of.setdefault(origin, len(side_of) % 2)
        sides[side].append(firing)
    return Split(*sides)


def silent(evidence: Evidence, unit: int) -> NDArray[np.bool_]:
    """The pictures (N) in which the unit counts as silent: at most the median of its peaks.

    For a sparse feature, whose median is 0, these are just the pictures in which it never fires.
    """
    peaks = evidence.peaks(unit)
    return np.asarray(peaks <= np.median(peaks), dtype=np.bool_)


def spread(evidence: Evidence, wanted: int) -> list[int]:
    """At most ``wanted`` units that fire, evenly spaced over all: half as many at least, if there
    are so many; where most are dead, more are looked at. The same for every run."""
    firing: list[int] = []
    looked: set[int] = set()
    while len(firing) < wanted / 2 and len(looked) < evidence.width:
        finer = spaced(evidence.width, max(wanted, 2 * len(looked))).tolist()
        firing += [unit for unit in finer if unit not in looked and evidence.firings(unit)]
        looked.update(finer)
    firing.sort()
    return [firing[i] for i in spaced(len(firing), wanted)]


def spaced(count: int, wanted: int) -> NDArray[np.int64]:
    """At most ``wanted`` of the numbers below ``count``, evenly spaced: the same for every run."""
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).round().astype(np.int64))

"""Who may look at which pictures: three sides that share no source.

What chooses a label, what decides whether it is given, and what reports how true labels are must
see different pictures, or each flatters the one before it. A source (a photograph, a drawing) is on
the same side in every data set: the side is read off a hash of its name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Side = Literal["choose", "judge", "audit"]
SIDES: tuple[Side, ...] = get_args(Side)
"""Half of all sources choose, a quarter judges what was chosen, a quarter audits the judge."""
_QUARTERS: tuple[Side, ...] = ("choose", "choose", "judge", "audit")

JOINED_BY = " + "
"""Between the names of sources of which one picture was composed."""


def side_of(origin: str) -> Side | None:
    """The side of a picture by what it was made of; None where its sources lie on several."""
    sides = {_of_source(source) for source in origin.split(JOINED_BY)}
    return sides.pop() if len(sides) == 1 else None


def _of_source(source: str) -> Side:
    return _QUARTERS[hashlib.sha256(source.encode()).digest()[0] % len(_QUARTERS)]


def on_sides(origins: Iterable[str], *sides: Side) -> NDArray[np.bool_]:
    """Which pictures (N), given by their origins, lie on one of ``sides``."""
    return np.array([side_of(origin) in sides for origin in origins], dtype=np.bool_)

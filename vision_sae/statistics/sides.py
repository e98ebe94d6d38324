"""The split of pictures into three sides that share no source.

A label is chosen on one side, accepted or rejected on a second, and its truth is reported from a
third. With shared pictures, each step would confirm the errors of the step before. A source (a
photograph, a drawing) is on the same side in every data set: a hash of its name decides the side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool

Side = Literal["choose", "judge", "audit"]
SIDES: tuple[Side, ...] = get_args(Side)
"""Half of all sources choose, a quarter judges what was chosen, a quarter audits the judge."""
_QUARTERS: tuple[Side, ...] = ("choose", "choose", "judge", "audit")

JOINED_BY = " + "
"""The separator between the names of the sources of a composed picture."""


def side_of(origin: str) -> Side | None:
    """The side of a picture, from the names of its sources; None when they lie on several sides."""
    sides = {_of_source(source) for source in origin.split(JOINED_BY)}
    return sides.pop() if len(sides) == 1 else None


def _of_source(source: str) -> Side:
    return _QUARTERS[hashlib.sha256(source.encode()).digest()[0] % len(_QUARTERS)]


def on_sides(origins: Iterable[str], *sides: Side) -> Bool[np.ndarray, " N"]:
    """Whether each picture, named by its origin, lies on one of ``sides``."""
    return np.array([side_of(origin) in sides for origin in origins], dtype=np.bool_)

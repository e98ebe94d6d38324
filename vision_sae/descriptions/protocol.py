"""What every describer takes and returns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from vision_sae.bundles.bundle import Bundle


@dataclass(frozen=True)
class Score:
    """One measured quality of a description."""

    metric: str
    value: float
    n: int
    """Number of independent images (or patches) it was measured on."""


@dataclass(frozen=True)
class Description:
    """A natural-language label of a feature, or an explicit abstention."""

    feature: int
    text: str | None
    """None when the describer abstains."""
    abstained: str
    """Why it abstained; empty when it did not."""
    describer: str
    describer_version: int
    scores: tuple[Score, ...] = ()
    evidence: tuple[int, ...] = ()
    """Patches (rows of the data set) of the exemplars it was made from."""
    details: dict[str, Any] = field(default_factory=dict)
    """What the describer wants to say beyond that, for example its words and their p-values."""


class Describer(Protocol):
    """Turns features into descriptions; a description depends on nothing but the bundle."""

    name: str
    version: int

    def describe(self, bundle: Bundle, features: Iterable[int]) -> Iterator[Description]:
        """Descriptions of ``features`` in order."""
        ...

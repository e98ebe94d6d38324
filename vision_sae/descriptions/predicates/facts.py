"""All that can be looked up of one data set, and which of it may choose or judge."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache, cached_property, lru_cache
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from vision_sae.activations.store import sources_of
from vision_sae.descriptions.evidence.protocol import Evidence
from vision_sae.descriptions.predicates.captions import CaptionKinds
from vision_sae.descriptions.predicates.label import Label
from vision_sae.descriptions.predicates.looks import COLOURS, measured
from vision_sae.descriptions.predicates.wordnet import nouns
from vision_sae.statistics.association import source_weights
from vision_sae.statistics.sides import Side, on_sides

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]

_KEPT = 160
"""Labels whose `Fit` is kept: those of the pool of controls are asked for again and again."""
FEWEST_SOURCES = 12
"""Sources of the choosing side that must show a kind before a label may name it: rarer words win
by chance."""
_EVERYDAY = 3.0
"""Zipf frequency below which nobody would call a thing so."""
_MOST_WORDS = 2
_SEEN = frozenset({"physical entity", "shape", "sign", "mark", "symbol"})
"""Kinds of which everything can be seen in a picture."""
_PLAIN = 4.3
"""Zipf frequency from which on a word is a plain one."""
TOO_GENERAL = "too_general.txt"
"""The list of kinds that say nothing of a picture, beside this file."""


class Fit(NamedTuple):
    """Where a label fits: pictures that show one of its kinds, patches that have its looks."""

    patches: Mask
    """(N, P)"""
    counts: Floats
    """How many patches of each picture (N)."""


class Facts:
    """The predicates of the pictures of one evidence: N pictures, P patches, L looks, V kinds."""

    def __init__(
        self, evidence: Evidence, directory: Path | None = None, *, progress: bool = False
    ) -> None:
        origins = [image.origin for image in evidence.images]
        self.sources: NDArray[np.int64] = sources_of(evidence.images)
        """Number of each picture's source (N)."""
        self.captions = CaptionKinds(evidence.images)
        self.looks = measured(evidence, directory, progress=progress)
        """(N, P, L)"""
        self._sides: dict[Side, Mask] = {
            side: on_sides(origins, side) for side in ("choose", "judge", "audit")
        }

    def side(self, *sides: Side) -> Mask:
        """The pictures (N) of these sides."""
        return np.asarray(np.logical_or.reduce([self._sides[side] for side in sides]))

    @cached_property
    def weights(self) -> Floats:
        """Of each picture (N): a source weighs one in all."""
        return source_weights(self.sources)

    @cached_property
    def look_shares(self) -> NDArray[np.float32]:
        """Share of each picture's patches with each look (N, L)."""
        return np.asarray(self.looks.mean(axis=1, dtype=np.float32))

    @cached_property
    def kinds(self) -> NDArray[np.int64]:
        """The kinds that labels may name (V): said often enough of the choosing side, everyday, not
        too general; of kinds that the same pictures show, the most special one."""
        side = self.side("choose")
        shown = self.captions.shows[side].tocsc()
        of_source, found = self.sources[side], dict[bytes, int]()
        for kind in np.flatnonzero(np.diff(shown.indptr)).tolist():
            rows = shown.indices[shown.indptr[kind] : shown.indptr[kind + 1]]
            entry = nouns().kinds[kind]
            if (
                len(np.unique(of_source[rows])) < FEWEST_SOURCES
                or entry.zipf < _EVERYDAY
                or entry.name in too_general()
                or self.captions.name(kind) in COLOURS
                or len(entry.name.split()) > _MOST_WORDS
                or not _can_be_seen(kind)
            ):
                continue
            same = np.sort(rows).tobytes()
            if same not in found or _says_more(kind, found[same]):
                found[same] = kind
        return np.array(sorted(found.values()), dtype=np.int64)

    @cached_property
    def shows(self) -> csr_array:
        """Which picture shows which of `kinds` (N, V), float64."""
        return self.captions.shows[:, self.kinds].astype(np.float64).tocsr()

    @cached_property
    def costs(self) -> Floats:
        """What naming each of `kinds` costs (V), in nats: minus the log of how often one is said,
        so that a hypernym is cheaper than a hyponym."""
        side = self.side("choose") & self.captions.said
        rates = (self.weights * side) @ self.shows / max(1.0, float((self.weights * side).sum()))
        return np.asarray(-np.log(np.maximum(rates, 1e-6)))

    def label(self, kinds: Sequence[int]) -> Label:
        """A label of kinds by the names that captions have for them."""
        return Label(tuple(kinds), (), tuple(self.captions.name(kind) for kind in kinds))

    def names(self, label: Label) -> Mask:
        """The pictures (N) that show one of the label's kinds; all for a label of looks alone."""
        return self.captions.of(label.kinds) if label.kinds else np.ones(len(self.sources), bool)

    def places(self, label: Label) -> Mask:
        """The patches (N, P) that have all looks of a label."""
        rows = label.rows
        if not rows:
            return np.ones(self.looks.shape[:2], dtype=np.bool_)
        found = self.looks[:, :, rows[0]]
        for row in rows[1:]:
            found = found & self.looks[:, :, row]
        return np.asarray(found)

    @cached_property
    def fits(self) -> Callable[[Label], Fit]:
        """Where a label fits; those of the last labels asked for are kept."""

        def fits(label: Label) -> Fit:
            patches = self.places(label) & self.names(label)[:, None]
            return Fit(patches, patches.sum(axis=1).astype(np.float64))

        return lru_cache(maxsize=_KEPT)(fits)


@cache
def too_general() -> frozenset[str]:
    """Names of kinds that no label may be made of."""
    text = files(__package__).joinpath(TOO_GENERAL).read_text(encoding="utf-8")
    return frozenset(line for line in text.splitlines() if line and not line.startswith("#"))


@cache
def _can_be_seen(kind: int) -> bool:
    """Whether a kind is one of things or of signs, not of what goes on or is thought."""
    return any(nouns().kinds[above].name in _SEEN for above in nouns().above(kind))


def _says_more(kind: int, other: int) -> bool:
    """Whether of two kinds that the same pictures show a label says ``kind``: the more special one
    where its name is a plain word ("fruit" before "food", but "animal" before "mammal"), and
    otherwise the one with the more usual name."""
    one, two = nouns().kinds[kind], nouns().kinds[other]
    if (one.zipf >= _PLAIN) != (two.zipf >= _PLAIN):
        return one.zipf >= _PLAIN
    if one.zipf < _PLAIN:
        return one.zipf > two.zipf
    return len(nouns().above(kind)) > len(nouns().above(other))


def cost_of_look() -> float:
    """What naming one look costs, in nats: as many can be said."""
    from vision_sae.descriptions.predicates.looks import LOOKS

    return math.log(len(LOOKS))

"""The facts about the pictures of one data set, and the sides that choose and judge labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache, cached_property, lru_cache
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64
from numpy.typing import NDArray
from scipy.sparse import csr_array

from vision_sae.activations.store import sources_of
from vision_sae.descriptions.predicates.captions import CaptionKinds
from vision_sae.descriptions.predicates.label import Label
from vision_sae.descriptions.predicates.looks import COLOURS, measured
from vision_sae.descriptions.predicates.wordnet import nouns
from vision_sae.evidence.protocol import Evidence
from vision_sae.statistics.association import source_weights
from vision_sae.statistics.sides import Side, on_sides

_KEPT = 160
"""Number of labels whose `Fit` is cached: the labels of the pool of controls recur all the time."""
FEWEST_SOURCES = 12
"""A label may name a kind that this many sources of the choosing side show: a rarer word can have
the largest gain by chance."""
_EVERYDAY = 3.0
"""Least Zipf frequency of a name in labels: rarer words are not everyday English."""
_MOST_WORDS = 2
_SEEN = frozenset({"physical entity", "shape", "sign", "mark", "symbol"})
"""Hypernyms of the kinds that can be seen in a picture."""
_PLAIN = 4.3
"""Least Zipf frequency of a plain word."""
TOO_GENERAL = "too_general.txt"
"""The file, beside this module, of kinds that are too general for a label."""


class Fit(NamedTuple):
    """Where a label is true: patches with the label's looks, in pictures that show its kinds."""

    patches: Bool[np.ndarray, "N P"]
    counts: Float[np.ndarray, N]
    """The number of such patches in each picture."""


class Facts:
    """The predicates of the pictures of one evidence: N pictures, P patches, L looks, V kinds."""

    def __init__(
        self, evidence: Evidence, directory: Path | None = None, *, progress: bool = False
    ) -> None:
        origins = [image.origin for image in evidence.images]
        self.sources: Int64[np.ndarray, N] = sources_of(evidence.images)
        """Number of each picture's source."""
        self.captions = CaptionKinds(evidence.images)
        self.looks = measured(evidence, directory, progress=progress)
        """Whether a patch has a look (N, P, L)."""
        self._sides: dict[Side, NDArray[np.bool_]] = {
            side: on_sides(origins, side) for side in ("choose", "judge", "audit")
        }

    def side(self, *sides: Side) -> Bool[np.ndarray, N]:
        """The pictures of these sides."""
        return np.asarray(np.logical_or.reduce([self._sides[side] for side in sides]))

    @cached_property
    def weights(self) -> Float[np.ndarray, N]:
        """The weight of each picture; the weights of one source add up to one."""
        return source_weights(self.sources)

    @cached_property
    def look_shares(self) -> Float32[np.ndarray, "N L"]:
        """Share of each picture's patches with each look."""
        return np.asarray(self.looks.mean(axis=1, dtype=np.float32))

    @cached_property
    def kinds(self) -> Int64[np.ndarray, V]:
        """The kinds that labels may name: frequent on the choosing side, everyday, not too general.

        Of several kinds in the same pictures, the most specific kind is taken; see `_says_more`.
        """
        side = self.side("choose")
        shown = self.captions.shows[side].tocsc()
        of_source, by_pictures = self.sources[side], dict[bytes, int]()
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
            if same not in by_pictures or _says_more(kind, by_pictures[same]):
                by_pictures[same] = kind
        return np.array(sorted(by_pictures.values()), dtype=np.int64)

    @cached_property
    def shows(self) -> csr_array:
        """Whether a picture shows one of `kinds` (N, V), float64."""
        return self.captions.shows[:, self.kinds].astype(np.float64).tocsr()

    @cached_property
    def costs(self) -> Float[np.ndarray, V]:
        """The description length of each of `kinds` in nats: minus the log of its frequency.

        A hypernym is therefore shorter than its hyponyms.
        """
        side = self.side("choose") & self.captions.captioned
        rates = (self.weights * side) @ self.shows / max(1.0, float((self.weights * side).sum()))
        return np.asarray(-np.log(np.maximum(rates, 1e-6)))

    def label(self, kinds: Sequence[int]) -> Label:
        """A label of kinds, by their most frequent names in captions."""
        return Label(tuple(kinds), (), tuple(self.captions.name(kind) for kind in kinds))

    def names(self, label: Label) -> Bool[np.ndarray, N]:
        """The pictures that show one of the label's kinds; all for a label of looks alone."""
        return self.captions.of(label.kinds) if label.kinds else np.ones(len(self.sources), bool)

    def places(self, label: Label) -> Bool[np.ndarray, "N P"]:
        """The patches that have all looks of a label."""
        rows = label.rows
        if not rows:
            return np.ones(self.looks.shape[:2], dtype=np.bool_)
        patches = self.looks[:, :, rows[0]]
        for row in rows[1:]:
            patches = patches & self.looks[:, :, row]
        return np.asarray(patches)

    @cached_property
    def fits(self) -> Callable[[Label], Fit]:
        """Where a label is true; the results for the most recent labels are cached."""

        def fits(label: Label) -> Fit:
            patches = self.places(label) & self.names(label)[:, None]
            return Fit(patches, patches.sum(axis=1).astype(np.float64))

        return lru_cache(maxsize=_KEPT)(fits)


@cache
def too_general() -> frozenset[str]:
    """Names of kinds that are too general for a label."""
    text = files(__package__).joinpath(TOO_GENERAL).read_text(encoding="utf-8")
    return frozenset(line for line in text.splitlines() if line and not line.startswith("#"))


@cache
def _can_be_seen(kind: int) -> bool:
    """Whether a kind is a physical thing or a sign, not an event or an idea."""
    return any(nouns().kinds[above].name in _SEEN for above in nouns().above(kind))


def _says_more(kind: int, other: int) -> bool:
    """Whether a label names ``kind`` rather than ``other``, where the same pictures show both.

    Of two plain words the label names the more specific kind ("fruit" before "food"); otherwise it
    names the more usual word ("animal" before "mammal").
    """
    one, two = nouns().kinds[kind], nouns().kinds[other]
    if (one.zipf >= _PLAIN) != (two.zipf >= _PLAIN):
        return one.zipf >= _PLAIN
    if one.zipf < _PLAIN:
        return one.zipf > two.zipf
    return len(nouns().above(kind)) > len(nouns().above(other))


def cost_of_look() -> float:
    """The description length of one look in nats: the log of the number of looks."""
    from vision_sae.descriptions.predicates.looks import LOOKS

    return math.log(len(LOOKS))

"""All that can be looked up of one data set, and which of it may choose or judge."""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from vision_sae.activations.store import sources_of
from vision_sae.descriptions.evidence.protocol import Evidence
from vision_sae.descriptions.predicates.captions import CaptionKinds
from vision_sae.descriptions.predicates.label import Label
from vision_sae.descriptions.predicates.looks import measured
from vision_sae.descriptions.predicates.wordnet import nouns
from vision_sae.statistics.association import source_weights
from vision_sae.statistics.sides import Side, on_sides

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]

FEWEST_SOURCES = 12
"""Sources of the choosing side that must show a kind before a label may name it: rarer words win
by chance."""
_EVERYDAY = 3.0
"""Zipf frequency below which nobody would call a thing so."""
_TOO_GENERAL = frozenset((
    "entity", "physical entity", "abstraction", "abstract entity", "object", "whole", "artifact",
    "thing", "matter", "substance", "unit", "causal agent", "cause", "living thing", "organism",
    "being", "instrumentation", "instrumentality", "attribute", "property", "relation", "group",
    "measure", "psychological feature", "event", "act", "activity", "state", "cognition",
    "communication", "content", "part", "piece", "component", "natural object", "solid", "process",
    "phenomenon", "region", "location", "area", "body", "portion", "definite quantity",
    "fundamental quantity", "item", "creation", "product", "commodity", "possession", "material",
    "chordate", "vertebrate", "placental", "adult", "way", "point", "line", "visual property",
    "chromatic color", "color", "change", "motion", "extremity", "surface", "language unit",
    "social group", "gathering", "implement", "instrument", "covering", "cover", "structure",
    "construction", "mechanism", "conveyance", "facility", "system", "equipment", "worker",
    "leader", "expert", "relative", "communicator", "good", "consumer goods", "article",
    "indication", "mark", "symbol", "signal", "evidence", "information", "message", "statement",
    "external body part", "plant part", "plant organ", "reproductive structure", "natural elevation",
    "geological formation", "wheeled vehicle", "self-propelled vehicle", "enclosure", "opening",
    "protective covering", "strip", "band", "sheet", "layer", "lamina", "number", "figure", "shape",
    "plane figure", "two-dimensional figure", "round shape", "solid figure", "soul", "someone",
    "male", "female", "vascular plant", "woody plant", "fluid", "liquid", "foodstuff", "nutriment",
    "nourishment", "domestic animal", "produce", "intellect", "end", "side", "position", "place",
))  # fmt: skip
"""Kinds that say nothing, or that nobody says of a picture."""


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
        return np.logical_or.reduce([self._sides[side] for side in sides])

    @cached_property
    def weights(self) -> Floats:
        """Of each picture (N): a source weighs one in all."""
        return source_weights(self.sources)

    @cached_property
    def look_shares(self) -> NDArray[np.float32]:
        """Share of each picture's patches with each look (N, L)."""
        return self.looks.mean(axis=1, dtype=np.float32)

    @cached_property
    def kinds(self) -> NDArray[np.int64]:
        """The kinds that labels may name (V): said often enough of the choosing side, everyday, not
        too general; of kinds that the same pictures show, the one with the most usual name."""
        side = self.side("choose")
        shown = self.captions.shows[side].tocsc()
        of_source, found = self.sources[side], dict[bytes, int]()
        for kind in np.flatnonzero(np.diff(shown.indptr)).tolist():
            rows = shown.indices[shown.indptr[kind] : shown.indptr[kind + 1]]
            entry = nouns().kinds[kind]
            if (
                len(np.unique(of_source[rows])) < FEWEST_SOURCES
                or entry.zipf < _EVERYDAY
                or entry.name in _TOO_GENERAL
            ):
                continue
            same = np.sort(rows).tobytes()
            if same not in found or nouns().kinds[found[same]].zipf < entry.zipf:
                found[same] = kind
        return np.array(sorted(found.values()), dtype=np.int64)

    @cached_property
    def shows(self) -> csr_array:
        """Which picture shows which of `kinds` (N, V), float64."""
        return self.captions.shows[:, self.kinds].astype(np.float64).tocsr()

    @cached_property
    def costs(self) -> Floats:
        """What naming each of `kinds` costs (V), in nats: minus the log of how often one is said, so
        that a hypernym is cheaper than a hyponym."""
        side = self.side("choose") & self.captions.said
        rates = (self.weights * side) @ self.shows / max(1.0, float((self.weights * side).sum()))
        return np.asarray(-np.log(np.maximum(rates, 1e-6)))

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

    def truth(self, label: Label, region: int) -> Floats:
        """How far a label fits each picture (N), from 0 to 1.

        Kinds are shown or not. Of looks as many patches must have them all as a unit usually fires
        on, its ``region``; fewer fit in part.
        """
        truth = self.names(label).astype(np.float64)
        if label.looks:
            truth *= np.minimum(1, self.places(label).sum(1) / max(1, region))
        return truth


def cost_of_look() -> float:
    """What naming one look costs, in nats: as many can be said."""
    from vision_sae.descriptions.predicates.looks import LOOKS

    return math.log(len(LOOKS))

"""A unit's activation against a label's truth, over all pictures or over all patches.

Over pictures, the strongest activation of each picture is compared with the truth of the label: the
share of the picture's patches that have the label's looks, or whether the picture shows its kinds.
A label that is equally true of all pictures, such as "in the upper part", needs the comparison over
patches.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool
from numpy.typing import NDArray

from vision_sae.descriptions.predicates.facts import Facts
from vision_sae.descriptions.predicates.label import Label
from vision_sae.evidence.protocol import Evidence
from vision_sae.statistics import association

Floats = NDArray[np.float64]
Over = Literal["pictures", "patches"]


def range_of(
    over: Over, facts: Facts, evidence: Evidence, unit: int, known: Bool[np.ndarray, N]
) -> PictureRange | PatchRange:
    """The range of a comparison: the pictures ``known``, or all of their patches."""
    return (PictureRange if over == "pictures" else PatchRange)(facts, evidence, unit, known)


def better_range(
    facts: Facts, evidence: Evidence, unit: int, label: Label, side: Bool[np.ndarray, N]
) -> Over:
    """The range of the larger correlation between truth and activation, on one ``side``.

    The describer calls this on the choosing side; the judge uses the describer's range.
    """
    if not label.looks:
        return "pictures"
    pictures = PictureRange(facts, evidence, unit, side).correlation(label)[0]
    patches = PatchRange(facts, evidence, unit, side).correlation(label)[0]
    return "pictures" if pictures >= patches else "patches"  # patches when a value is NaN


class Overlap(NamedTuple):
    """The overlap of the pictures that fire a unit strongly with the pictures that a label fits."""

    f1: float
    iou: float


class PictureRange:
    """A unit's strongest activation in each picture."""

    def __init__(
        self, facts: Facts, evidence: Evidence, unit: int, known: Bool[np.ndarray, N]
    ) -> None:
        self._facts, self._known, self._unit = facts, known, unit
        self._sources = facts.sources[known]
        self._weights = association.source_weights(self._sources)
        self._activation = evidence.peaks(unit).astype(np.float64)[known]

    def _truth(self, label: Label) -> Floats:
        if not label.looks:
            return np.asarray(self._facts.names(label)[self._known], dtype=np.float64)
        fits = self._facts.fits(label)
        return np.asarray(fits.counts[self._known] / fits.patches.shape[1])

    def correlation(self, label: Label, *, interval: bool = False) -> tuple[float, float, float]:
        """(value, lower, upper)"""
        truth = self._truth(label)
        value = association.correlation(self._activation, truth, self._weights)
        if not interval or math.isnan(value):
            return value, value, value
        ends = association.correlation_interval(
            self._activation, truth, self._sources, seed=self._unit
        )
        return value, *ends

    def auprc(self, label: Label) -> tuple[float, float]:
        """(area, share of pictures that the label fits)"""
        truth = self._binary(label)
        area = association.auprc(self._activation, truth, self._weights)
        return area, association.base_rate(truth, self._weights)

    def _binary(self, label: Label) -> Floats:
        """1 for a picture whose truth is at least the median of positive truths, else 0."""
        truth = self._truth(label)
        fits = truth[truth > 0]
        return np.asarray((truth > 0) & (truth >= np.median(fits)), float) if len(fits) else truth

    def overlap(self, label: Label) -> Overlap:
        """F1 and intersection over union of strong firing and truth."""
        a, t, w = self._activation, self._binary(label), self._weights
        threshold = association.firing_threshold(a)
        return Overlap(association.f1(a, t, threshold, w), association.iou(a, t, threshold, w))


class PatchRange:
    """A unit's activation on each patch of each picture."""

    def __init__(
        self, facts: Facts, evidence: Evidence, unit: int, known: Bool[np.ndarray, N]
    ) -> None:
        self._facts, self._known, self._unit = facts, known, unit
        self._sources = facts.sources[known]
        rows, values = evidence.places(unit)
        picture, patch = np.divmod(np.asarray(rows, dtype=np.int64), evidence.grid.patches)
        kept = known[picture]
        self._picture, self._patch = picture[kept], patch[kept]
        self._values = np.asarray(values, dtype=np.float64)[kept]
        self._patches = evidence.grid.patches

    def _per_picture(self, values: Floats) -> Floats:
        sums = np.bincount(self._picture, values, minlength=len(self._known))
        return np.asarray(sums[self._known])

    def correlation(self, label: Label, *, interval: bool = False) -> tuple[float, float, float]:
        """(value, lower, upper)"""
        fits = self._facts.fits(label)
        here = fits.patches[self._picture, self._patch]
        true = fits.counts[self._known]
        sums = association.Sums(
            patches=np.full(len(true), float(self._patches)),
            a=self._per_picture(self._values),
            t=true,
            aa=self._per_picture(self._values**2),
            tt=true,
            at=self._per_picture(self._values * here),
        )
        resamples = association.RESAMPLES if interval else 1
        return association.patch_correlation(sums, self._sources, self._unit, resamples)

    def auprc(self, label: Label) -> tuple[float, float]:
        """(area, share of patches that the label fits)"""
        fits = self._facts.fits(label)
        total = float(self._known.sum() * self._patches)
        true = float(fits.counts[self._known].sum())
        here = fits.patches[self._picture, self._patch]
        area = association.auprc_of_firing(self._values, here.astype(float), true, total)
        return area, true / max(total, 1.0)

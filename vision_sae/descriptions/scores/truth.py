"""Truth that is not the describer's own: what captions and pixels say of a label.

A label is looked up on pictures of the judging side, which no step of its choice saw. Captions tell
whether its kinds are shown, pixels whether the patches that fire have its looks. It passes when it
holds for most of the strongest pictures, more often than anywhere, and when its truth goes with the
activation over all pictures, silent ones too, better than labels of other units do: by the whole
interval. Correlation is what decides of the figures of the whole range, because it falls for
missing and for extra labels at every rate of firing; see `vision_sae.descriptions.scores.deciding`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vision_sae.descriptions.evidence.protocol import Evidence
from vision_sae.descriptions.predicates.facts import Facts
from vision_sae.descriptions.predicates.label import Label
from vision_sae.descriptions.predicates.regions import Regions, regions_of
from vision_sae.descriptions.protocol import Metric, Score
from vision_sae.statistics import association

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

VERSION = 1
"""Of the judges: another one confirms other labels."""
STRONGEST = 20
"""Pictures of different sources on which precision is measured."""
FEWEST = 5
"""Sources on which it must rest."""
KINDS_HOLD, LOOKS_HOLD = 0.55, 0.85
"""Shares of the strongest pictures for which kinds and looks must hold."""
LEAST_CORRELATION = 0.2
"""What a true label may say too little for: it holds in so many other places that its truth tells
next to nothing about the activation."""
_Z = 1.959964
"""Half of the width of a 95 % interval, in standard errors."""

CAPTIONS, PIXELS = "captions", "pixels"


class Control(NamedTuple):
    """The label of another unit, which a label must beat."""

    unit: int
    label: Label


class Verdict(NamedTuple):
    """What the judges say of a label."""

    scores: tuple[Score, ...]
    judged_by: str
    """Who confirmed it; empty when it failed, or when nothing of it can be looked up."""
    reason: str
    """Why it is not confirmed; empty when it is."""


def judges_of(facts: Facts, label: Label) -> str:
    """Who can look a label up: captions, pixels, both, or nobody."""
    by = [CAPTIONS] if label.kinds and facts.captions.said.any() else []
    return " and ".join([*by, *([PIXELS] if label.looks else [])])


def judge(
    facts: Facts,
    evidence: Evidence,
    unit: int,
    label: Label,
    *,
    side: Mask,
    controls: Sequence[Control] = (),
) -> Verdict:
    """Look a label up on the pictures of one ``side`` (N), which no step of its choice saw.

    ``controls`` are labels of other units.
    """
    by = judges_of(facts, label)
    if not by:
        return Verdict((), "", "no part of it can be looked up in captions or pixels")
    regions = regions_of(evidence, unit, facts, side, most=64)
    activation = evidence.peaks(unit).astype(np.float64)
    of_sources = _first_of_each(regions, facts)[:STRONGEST]
    if len(of_sources) < FEWEST:
        reason = f"{len(of_sources)} independent pictures to judge it on, fewer than {FEWEST}"
        return Verdict((), "", reason)
    scores = list[Score]()
    failed = list[str]()
    # Nothing is known of pictures of which nobody said anything.
    known = side & (facts.captions.said if label.kinds else True)
    if label.kinds:
        shown = facts.names(Label(label.kinds))
        told = of_sources[facts.captions.said[regions.pictures[of_sources]]]
        holds = shown[regions.pictures[told]]
        base = association.base_rate(shown[known].astype(float), facts.weights[known])
        scores += _precision(holds, base, CAPTIONS)
        silent = association.silent_share(activation[known], shown[known].astype(float))
        scores.append(
            Score("silent_share", _finite(silent), int(shown[known].sum()), judge=CAPTIONS)
        )
        failed += _fails(holds, base, KINDS_HOLD, "captions name it")
    if label.looks:
        looks = Label((), label.looks)
        holds = regions.have(looks)[of_sources]
        weights = facts.weights * known
        base = float(weights @ facts.places(looks).mean(axis=1) / max(1e-9, weights.sum()))
        scores += _precision(holds, base, PIXELS)
        failed += _fails(holds, base, LOOKS_HOLD, "pixels have its looks")
    whole, reason = _whole_range(facts, evidence, unit, label, known, controls, by)
    scores += whole
    reasons = [*failed, *([reason] if reason else [])]
    return Verdict(tuple(scores), "" if reasons else by, "; ".join(reasons))


def _first_of_each(regions: Regions, facts: Facts) -> NDArray[np.int64]:
    """Numbers of the regions that are the strongest of their source, strongest first."""
    _, first = np.unique(facts.sources[regions.pictures], return_index=True)
    return np.sort(first)


def _precision(holds: Mask, base: float, by: str) -> list[Score]:
    if not len(holds):
        return []
    value, n = float(holds.mean()), len(holds)
    lower, upper = wilson(value, n)
    lift = value / max(base, 1 / (n + 1) / n)
    return [
        Score("precision", value, n, lower, upper, control=base, judge=by),
        Score("lift", lift, n, control=1.0, judge=by),
    ]


def _fails(holds: Mask, base: float, least: float, what: str) -> list[str]:
    if len(holds) < FEWEST:
        return [f"{len(holds)} independent pictures with a caption, fewer than {FEWEST}"]
    value = float(holds.mean())
    if value < least:
        return [f"{what} in {value:.0%} of the strongest pictures, fewer than {least:.0%}"]
    if wilson(value, len(holds))[0] <= base:
        return [f"{what} in {value:.0%} of the strongest pictures, which chance may do"]
    return []


def _whole_range(
    facts: Facts,
    evidence: Evidence,
    unit: int,
    label: Label,
    known: Mask,
    controls: Sequence[Control],
    by: str,
) -> tuple[list[Score], str]:
    """Figures over all pictures of the side, and why they are too weak; empty if they are not.

    A label of kinds alone is compared with the strongest activation of each picture; one with looks
    with the activation of each patch.
    """
    sources = facts.sources[known]
    over = _Patches(facts, evidence, unit, known) if label.looks else None
    pictures = _Pictures(facts, evidence, unit, known)
    range_ = over or pictures
    value, lower, upper = range_.correlation(label, interval=True)
    if math.isnan(value):
        return [], "it fits everything or nothing"
    others = [range_.correlation(c.label)[0] for c in controls]
    others = [other for other in others if not math.isnan(other)]
    control = float(np.mean(others)) if others else 0.0
    n = len(np.unique(sources))
    ranked, base = range_.auprc(label)
    scores = [
        Score("correlation", value, n, lower, upper, control=control, judge=by),
        Score("auprc", _finite(ranked), n, control=base, judge=by),
    ]
    if not label.looks:
        for metric, number in pictures.overlap(label).items():
            scores.append(Score(metric, _finite(number), n, judge=by))
    if lower <= max(control, 0):
        return scores, "its truth goes with the activation no better than other labels' does"
    if value < LEAST_CORRELATION:
        return scores, (
            f"it says too little: its truth and the activation correlate by {value:.2f}, less than "
            f"{LEAST_CORRELATION}"
        )
    return scores, ""


class _Pictures:
    """A unit's strongest activation in each picture."""

    def __init__(self, facts: Facts, evidence: Evidence, unit: int, known: Mask) -> None:
        self._facts, self._known, self._unit = facts, known, unit
        self._sources = facts.sources[known]
        self._weights = association.source_weights(self._sources)
        self._activation = evidence.peaks(unit).astype(np.float64)[known]

    def _truth(self, label: Label) -> Floats:
        kinds = self._facts.names(label)
        if label.looks:  # a control's
            kinds = self._facts.fits(label).counts > 0
        return np.asarray(kinds[self._known], dtype=np.float64)

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
        truth = self._truth(label)
        area = association.auprc(self._activation, truth, self._weights)
        return area, association.base_rate(truth, self._weights)

    def overlap(self, label: Label) -> dict[Metric, float]:
        """F1 and intersection over union of firing and truth."""
        a, t, w = self._activation, self._truth(label), self._weights
        threshold = association.firing_threshold(a)
        return {
            "f1": association.f1(a, t, threshold, w),
            "iou": association.iou(a, t, threshold, w),
        }


class _Patches:
    """A unit's activation on each patch of each picture."""

    def __init__(self, facts: Facts, evidence: Evidence, unit: int, known: Mask) -> None:
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
            count=np.full(len(true), float(self._patches)),
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


def wilson(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a share of n independent pictures (Wilson, JASA 22, 1927)."""
    middle = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def _finite(value: float) -> float:
    return 0.0 if math.isnan(value) else value

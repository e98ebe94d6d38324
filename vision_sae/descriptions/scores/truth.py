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
from vision_sae.descriptions.predicates.ranges import Over, Pictures, range_of
from vision_sae.descriptions.predicates.regions import Regions, regions_of
from vision_sae.descriptions.protocol import Score
from vision_sae.statistics import association
from vision_sae.statistics.proportions import wilson

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

VERSION = 1
"""Of the judges: another one confirms other labels."""
STRONGEST = 20
"""Pictures of different sources on which precision is measured."""
FEWEST = 5
"""Sources on which it must rest."""
KINDS_HOLD, LOOKS_HOLD = 0.6, 0.9
"""Shares of the strongest pictures for which kinds and looks must hold."""
LEAST_CORRELATION = 0.2
"""What a true label may say too little for: it holds in so many other places that its truth tells
next to nothing about the activation."""

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
    over: Over = "pictures",
) -> Verdict:
    """Look a label up on the pictures of one ``side`` (N), which no step of its choice saw.

    ``controls`` are labels of other units; ``over`` is what its truth and the activation are
    compared over, as whoever chose it found on the pictures that it was chosen by.
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
    whole, reason = _whole_range(facts, evidence, unit, label, known, controls, by, over)
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
    n = len(holds)
    value, lower, upper = wilson(int(holds.sum()), n)
    lift = value / max(base, 1 / (n + 1) / n)
    return [
        Score("precision", value, n, lower, upper, control=base, judge=by),
        Score("lift", lift, n, control=1.0, judge=by),
    ]


def _fails(holds: Mask, base: float, least: float, what: str) -> list[str]:
    if len(holds) < FEWEST:
        return [f"{len(holds)} independent pictures with a caption, fewer than {FEWEST}"]
    value, lower, _ = wilson(int(holds.sum()), len(holds))
    if value < least:
        return [f"{what} in {value:.0%} of the strongest pictures, fewer than {least:.0%}"]
    if lower <= base:
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
    over: Over,
) -> tuple[list[Score], str]:
    """Figures over all pictures of the side, and why they are too weak; empty if they are not.

    ``over`` says what is compared; see `vision_sae.descriptions.predicates.ranges`.
    """
    sources = facts.sources[known]
    range_ = range_of(over, facts, evidence, unit, known)
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
    if isinstance(range_, Pictures):
        overlap = range_.overlap(label)
        scores.append(Score("f1", _finite(overlap.f1), n, judge=by))
        scores.append(Score("iou", _finite(overlap.iou), n, judge=by))
    if lower <= max(control, 0):
        return scores, "its truth goes with the activation no better than other labels' does"
    if value < LEAST_CORRELATION:
        return scores, (
            f"it says too little: its truth and the activation correlate by {value:.2f}, less than "
            f"{LEAST_CORRELATION}"
        )
    return scores, ""


def _finite(value: float) -> float:
    return 0.0 if math.isnan(value) else value

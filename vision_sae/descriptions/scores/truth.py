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
from vision_sae.statistics.sides import Side

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

STRONGEST = 20
"""Pictures of different sources on which precision is measured."""
FEWEST = 5
"""Sources on which it must rest."""
KINDS_HOLD, LOOKS_HOLD = 0.5, 0.8
"""Shares of the strongest pictures for which kinds and looks must hold."""
_Z = 1.959964
"""Half of the width of a 95 % interval, in standard errors."""

CAPTIONS, PIXELS = "captions", "pixels"


class Control(NamedTuple):
    """The label of another unit, which a label must beat."""

    unit: int
    truth: Floats
    """How far it fits each picture (N)."""


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
    controls: Sequence[Control] = (),
    sides: Sequence[Side] = ("judge",),
    region: int | None = None,
) -> Verdict:
    """Look a label up on the pictures of ``sides``.

    ``region`` is how many patches the unit usually fires on, where that is known; ``controls`` are
    labels of other units.
    """
    side = facts.side(*sides)
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
    truth = facts.truth(label, region or regions.usual_size)
    whole, reason = _whole_range(facts, activation, truth, known, controls, unit, by)
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
    activation: Floats,
    truth: Floats,
    known: Mask,
    controls: Sequence[Control],
    unit: int,
    by: str,
) -> tuple[list[Score], str]:
    """Figures over all pictures of the side, and why they are too weak; empty if they are not."""
    a, t, sources = activation[known], truth[known], facts.sources[known]
    weights = association.source_weights(sources)
    value = association.correlation(a, t, weights)
    if math.isnan(value):
        return [], "it fits all pictures or none"
    lower, upper = association.correlation_interval(a, t, sources, seed=unit)
    others = [association.correlation(a, c.truth[known], weights) for c in controls]
    others = [other for other in others if not math.isnan(other)]
    control = float(np.mean(others)) if others else 0.0
    n = len(np.unique(sources))
    threshold = association.firing_threshold(a)
    plain: list[tuple[Metric, float, float | None]] = [
        ("auprc", association.auprc(a, t, weights), association.base_rate(t, weights)),
        ("f1", association.f1(a, t, threshold, weights), None),
        ("iou", association.iou(a, t, threshold, weights), None),
    ]
    scores = [
        Score("correlation", value, n, lower, upper, control=control, judge=by),
        *(
            Score(metric, number, n, control=chance, judge=by)
            for metric, number, chance in plain
            if not math.isnan(number)
        ),
    ]
    if lower <= max(control, 0):
        return scores, "its truth goes with the activation no better than other labels' does"
    return scores, ""


def wilson(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a share of n independent pictures (Wilson, JASA 22, 1927)."""
    middle = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def _finite(value: float) -> float:
    return 0.0 if math.isnan(value) else value

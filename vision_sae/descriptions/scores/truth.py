"""Judges that are independent of the describer: captions and pixels test a label.

A label is tested on pictures of the judging side, which no step of its choice saw. Captions show
whether a picture contains the label's kinds; pixels show whether the firing patches have the
label's looks. A label passes when it holds for most of the strongest pictures, more often than in
all pictures, and when its truth correlates with the activation over all pictures, silent pictures
included, more than labels of other units do, by the whole interval. Correlation decides among the
figures over all pictures, because it falls for missing and for extra labels at every firing rate;
see `vision_sae.descriptions.scoring.deciding`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool
from numpy.typing import NDArray

from vision_sae.descriptions.kinds import (
    EXTRA,
    MISSING,
    FailedChecks,
    MetricKind,
    ScoreKind,
    register_score,
)
from vision_sae.descriptions.predicates.facts import Facts
from vision_sae.descriptions.predicates.label import Label
from vision_sae.descriptions.predicates.ranges import Over, PictureRange, range_of
from vision_sae.descriptions.predicates.regions import Regions, regions_of
from vision_sae.descriptions.protocol import Score
from vision_sae.evidence.protocol import Evidence
from vision_sae.statistics import association
from vision_sae.statistics.proportions import wilson

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

VERSION = 1
"""The version of the judges, part of a label's identity."""
STRONGEST = 20
"""Pictures of different sources on which precision is measured."""
FEWEST = 5
"""The fewest sources for a precision."""
KINDS_HOLD, LOOKS_HOLD = 0.6, 0.9
"""Shares of the strongest pictures for which kinds and looks must hold."""
LEAST_CORRELATION = 0.2
"""The least correlation of truth and activation: a label below it is true in so many other places
that it predicts next to nothing."""

CAPTIONS, PIXELS = "captions", "pixels"


class Control(NamedTuple):
    """The label of another unit, which a label must beat."""

    unit: int
    label: Label


class Verdict(NamedTuple):
    """The judges' result for a label."""

    scores: tuple[Score, ...]
    judged_by: str
    """The judges that confirmed the label; empty when it failed, or when no judge can test it."""
    reason: str
    """Why the label is not confirmed; empty when it is."""


def judges_of(facts: Facts, label: Label) -> str:
    """The judges that can test a label: captions, pixels, both, or none (empty)."""
    by = [CAPTIONS] if label.kinds and facts.captions.captioned.any() else []
    return " and ".join([*by, *([PIXELS] if label.looks else [])])


def judge(
    facts: Facts,
    evidence: Evidence,
    unit: int,
    label: Label,
    *,
    side: Bool[np.ndarray, N],
    controls: Sequence[Control] = (),
    over: Over = "pictures",
) -> Verdict:
    """Test a label on the pictures of one ``side``, which no step of its choice saw.

    ``controls`` are labels of other units. ``over`` says whether truth and activation are compared
    by picture or by patch; the describer chooses it on its own pictures.
    """
    by = judges_of(facts, label)
    if not by:
        return Verdict((), "", "captions and pixels can test no part of it")
    regions = regions_of(evidence, unit, facts, side, most=64)
    activation = evidence.peaks(unit).astype(np.float64)
    of_sources = _first_of_each(regions, facts)[:STRONGEST]
    if len(of_sources) < FEWEST:
        reason = f"{len(of_sources)} independent pictures to judge it on, fewer than {FEWEST}"
        return Verdict((), "", reason)
    scores = list[Score]()
    failed = list[str]()
    # The contents of pictures without a caption or tags are unknown.
    known = side & (facts.captions.captioned if label.kinds else True)
    if label.kinds:
        shown = facts.names(Label(label.kinds))
        captioned = of_sources[facts.captions.captioned[regions.pictures[of_sources]]]
        holds = shown[regions.pictures[captioned]]
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
    """Numbers of the strongest region of each source, strongest first."""
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
        return [f"{what} in {value:.0%} of the strongest pictures, no more than by chance"]
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
    """Scores over all pictures of the side, and the reason to refuse the label, empty if none.

    ``over`` selects the range; see `vision_sae.descriptions.predicates.ranges`.
    """
    sources = facts.sources[known]
    range_ = range_of(over, facts, evidence, unit, known)
    value, lower, upper = range_.correlation(label, interval=True)
    if math.isnan(value):
        return [], "it fits all pictures or none"
    others = [range_.correlation(c.label)[0] for c in controls]
    others = [other for other in others if not math.isnan(other)]
    control = float(np.mean(others)) if others else 0.0
    n = len(np.unique(sources))
    ranked, base = range_.auprc(label)
    scores = [
        Score("correlation", value, n, lower, upper, control=control, judge=by),
        Score("auprc", _finite(ranked), n, control=base, judge=by),
    ]
    if isinstance(range_, PictureRange):
        overlap = range_.overlap(label)
        scores.append(Score("f1", _finite(overlap.f1), n, judge=by))
        scores.append(Score("iou", _finite(overlap.iou), n, judge=by))
    if lower <= max(control, 0):
        return scores, "its truth correlates with the activation no more than other labels' truth"
    if value < LEAST_CORRELATION:
        return scores, (
            f"it predicts too little: its truth and the activation correlate by {value:.2f}, less "
            f"than {LEAST_CORRELATION}"
        )
    return scores, ""


def _finite(value: float) -> float:
    return 0.0 if math.isnan(value) else value


TRUTH = register_score(
    ScoreKind(
        "truth",
        (
            MetricKind("correlation"),
            MetricKind("auprc"),
            MetricKind("f1"),
            MetricKind("iou"),
            MetricKind(
                "precision",
                FailedChecks(
                    EXTRA,
                    "It is the share of the strongest pictures that the label fits, less the share "
                    "of all pictures. A label of twice as many pictures fits the strongest as "
                    "well, and the base rate of a rare label is next to nothing either way.",
                ),
            ),
            MetricKind(
                "lift",
                FailedChecks(
                    MISSING,
                    "A label that misses half of what the unit fires on is half as common: the "
                    "share of the strongest pictures and the base rate fall alike.",
                ),
            ),
            MetricKind(
                "silent_share",
                FailedChecks(
                    MISSING,
                    "It uses only pictures that the label fits. It never uses the other pictures "
                    "that the unit fires on.",
                ),
            ),
        ),
        __doc__,
        version=VERSION,
    )
)

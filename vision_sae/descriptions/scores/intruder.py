"""Intruder: do a unit's pictures belong together? The score needs no text.

Each trial has `SHOWN` regions: all but one fire the unit, and the intruder does not. The region
least similar to the others (mean cosine) is the guess. The intruder has the mask of a firing, so
that the size of the region does not give it away.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int64

from vision_sae.descriptions.kinds import (
    EXTRA,
    MISSING,
    FailedChecks,
    MetricKind,
    ScoreKind,
    ScoreRequest,
    register_score,
)
from vision_sae.descriptions.protocol import Negatives, Score
from vision_sae.descriptions.scoring.scored import scored
from vision_sae.evidence.probe import Probe
from vision_sae.evidence.protocol import Evidence, Firing
from vision_sae.statistics.bootstrap import Counts
from vision_sae.statistics.ranking import Numbers

SHOWN = 5
CHANCE = 1 / SHOWN
"""Accuracy of guessing."""


def intruder_detected(
    regions: Float[np.ndarray, "trials shown E"],
) -> Bool[np.ndarray, trials]:
    """Whether the last region of each trial, the intruder, is least similar to the others.

    Regions have length 1.
    """
    cosines = regions @ np.swapaxes(regions, 1, 2)
    to_others = cosines.sum(2) - np.einsum("tii->ti", cosines)
    return np.asarray(to_others[:, -1] < to_others[:, :-1].min(1))


def score(
    probe: Probe,
    evidence: Evidence,
    firings: Sequence[Firing],
    silent: Int64[np.ndarray, n],
    negatives: Negatives,
    *,
    random: np.random.Generator,
    seed: int,
) -> Score | None:
    """Share of trials in which the intruder is detected; one trial for each silent picture.

    None for fewer than ``SHOWN`` firings (one firing lends its mask) or without silent pictures.
    """
    if len(firings) < SHOWN or not len(silent):
        return None
    drawn = np.array([random.permutation(len(firings))[:SHOWN] for _ in silent])
    intruders = [
        firings[lender]._replace(image=int(picture))
        for lender, picture in zip(drawn[:, -1], silent, strict=True)
    ]
    shown = probe.regions(evidence, firings)[drawn]
    shown[:, -1] = probe.regions(evidence, intruders)
    hits = intruder_detected(shown).astype(np.float32)

    def accuracy(counts: Counts) -> Numbers:
        return np.asarray(counts @ hits / len(hits))

    return scored("intruder_accuracy", [accuracy], [len(hits)], seed, negatives=negatives)


def _measure(request: ScoreRequest) -> list[Score]:
    """One series of trials for each kind of silent pictures."""
    case = request.case
    results = (
        score(
            request.probe,
            request.evidence,
            case.firings,
            case.negatives(kind),
            kind,
            random=case.random(2),
            seed=request.seed,
        )
        for kind in request.negatives
    )
    return [result for result in results if result is not None]


INTRUDER = register_score(
    ScoreKind(
        "intruder",
        (
            MetricKind(
                "intruder_accuracy",
                FailedChecks(
                    MISSING | EXTRA,
                    "It uses no label: it measures whether a unit's pictures belong together.",
                ),
            ),
        ),
        __doc__,
        _measure,
        needs_negatives=True,
    )
)

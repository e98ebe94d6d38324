"""Intruder: do a unit's pictures belong together, text or no text?

In each trial `SHOWN` regions are shown: all but one fire the unit, the intruder does not. The one
that resembles the others least (mean cosine) is called the intruder. So that an intruder is not
told by the size of its region, it is seen through the mask of a firing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vision_sae.descriptions.evidence.protocol import Evidence, Firing
from vision_sae.descriptions.probe import Probe
from vision_sae.descriptions.protocol import Negatives, Score
from vision_sae.descriptions.scores.bootstrap import Counts, scored
from vision_sae.descriptions.scores.ranking import Numbers

SHOWN = 5
CHANCE = 1 / SHOWN
"""Accuracy of guessing."""


def told_apart(shown: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Whether the last of each trial's regions (trials, SHOWN, E) resembles the others least.

    Regions have unit length.
    """
    cosines = shown @ np.swapaxes(shown, 1, 2)
    to_others = cosines.sum(2) - np.einsum("tii->ti", cosines)
    return np.asarray(to_others[:, -1] < to_others[:, :-1].min(1))


def score(
    probe: Probe,
    evidence: Evidence,
    firings: Sequence[Firing],
    silent: NDArray[np.int64],
    negatives: Negatives,
    *,
    random: np.random.Generator,
    seed: int,
) -> Score | None:
    """Share of trials in which the intruder was found; one trial for each of ``silent`` (n).

    None when there are fewer than ``SHOWN`` firings (one lends its mask) or no silent picture.
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
    hits = told_apart(shown).astype(np.float32)

    def accuracy(counts: Counts) -> Numbers:
        return np.asarray(counts @ hits / len(hits))

    return scored("intruder_accuracy", [accuracy], [len(hits)], seed, negatives=negatives)

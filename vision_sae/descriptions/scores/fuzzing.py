"""Fuzzing: does the text fit the place that fires the unit better than another of the SAME picture?

The other place has as many patches: the mask moved elsewhere, its shape kept, to where it does not
overlap itself; where there is no such place, as many patches outside the mask as there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from vision_sae.descriptions.evidence.protocol import Evidence, Firing
from vision_sae.descriptions.probe import Probe
from vision_sae.descriptions.protocol import Score
from vision_sae.descriptions.scores.bootstrap import Counts, scored
from vision_sae.descriptions.scores.ranking import Numbers, auc


def wrong_region(mask: NDArray[np.bool_], random: np.random.Generator) -> NDArray[np.bool_]:
    """As many patches as ``mask`` (rows, cols) has, elsewhere as far as there is room."""
    shifts = random.permutation(mask.size)
    # What a mask shares with itself moved is its autocorrelation: all moves in two transforms.
    spectrum = np.fft.rfft2(mask.astype(np.float64))
    shared = np.fft.irfft2(spectrum * spectrum.conj(), mask.shape).reshape(-1)
    (apart,) = np.nonzero(shared[shifts] < 0.5)
    if len(apart):
        down, right = divmod(int(shifts[apart[0]]), mask.shape[1])
        return np.roll(mask, (down, right), (0, 1))
    outside_first = shifts[np.argsort(mask.reshape(-1)[shifts], kind="stable")]
    wrong = np.zeros(mask.size, dtype=np.bool_)
    wrong[outside_first[: mask.sum()]] = True
    return wrong.reshape(mask.shape)


def score(
    probe: Probe,
    evidence: Evidence,
    texts: NDArray[np.float32],
    firings: Sequence[Firing],
    *,
    random: np.random.Generator,
    seed: int,
) -> Score | None:
    """Fuzzing AUC of the first of ``texts`` (T, E); the others are the control.

    Firings whose mask is the whole picture have no wrong place and are left out.
    """
    partly = [firing for firing in firings if not firing.mask.all()]
    if not partly:
        return None
    elsewhere = [f._replace(mask=wrong_region(f.mask, random)) for f in partly]
    right = texts @ probe.regions(evidence, partly).T
    wrong = texts @ probe.regions(evidence, elsewhere).T
    statistics = [partial(_paired_auc, r, w) for r, w in zip(right, wrong, strict=True)]
    return scored("fuzzing_auc", statistics, [len(partly)], seed)


def _paired_auc(right: Numbers, wrong: Numbers, drawn: Counts) -> Numbers:
    """Both places of a picture are drawn together."""
    return auc(right, wrong, drawn, drawn)

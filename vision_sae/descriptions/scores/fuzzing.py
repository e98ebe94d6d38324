"""Fuzzing: does the text fit the firing region better than another region of the SAME picture?

The other region is the mask at a shifted place that does not overlap the mask. When there is no
such place, the other region has equally many patches, outside of the mask as far as possible.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from jaxtyping import Bool, Float

from vision_sae.descriptions.kinds import (
    EXTRA,
    FailedChecks,
    MetricKind,
    ScoreKind,
    ScoreRequest,
    register_score,
)
from vision_sae.descriptions.protocol import Score
from vision_sae.descriptions.scoring.scored import scored
from vision_sae.evidence.probe import Probe
from vision_sae.evidence.protocol import Evidence, Firing
from vision_sae.statistics.bootstrap import Counts
from vision_sae.statistics.ranking import Numbers, auc


def wrong_region(
    mask: Bool[np.ndarray, "R C"], random: np.random.Generator
) -> Bool[np.ndarray, "R C"]:
    """A region of as many patches as ``mask``, outside of ``mask`` as far as possible."""
    shifts = random.permutation(mask.size)
    # The autocorrelation of a mask is its overlap with every shift, in two transforms.
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
    texts: Float[np.ndarray, "T E"],
    firings: Sequence[Firing],
    *,
    random: np.random.Generator,
    seed: int,
) -> Score | None:
    """Fuzzing AUC of the first of ``texts``; the other texts are the control.

    Firings whose mask is the whole picture have no other region and are left out.
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
    """The AUC when both regions of a picture are drawn together."""
    return auc(right, wrong, drawn, drawn)


def _measure(request: ScoreRequest) -> list[Score]:
    result = score(
        request.probe,
        request.evidence,
        request.texts,
        request.case.firings,
        random=request.case.random(1),
        seed=request.seed,
    )
    return [] if result is None else [result]


FUZZING = register_score(
    ScoreKind(
        "fuzzing",
        (
            MetricKind(
                "fuzzing_auc",
                FailedChecks(
                    EXTRA,
                    "It compares regions of the pictures that fire the unit. It uses no silent "
                    "pictures, which a too wide label also fits.",
                ),
            ),
        ),
        __doc__,
        _measure,
    )
)

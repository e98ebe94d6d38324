"""Simulation: does the text predict where in a picture the unit fires, and how strongly?

The predicted map is the cosines of the text with the patches, resampled by overlapping area to the
grid of the unit's model. The score is Pearson's correlation of the predicted map with the
activations, over the patches of all pictures together.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from jaxtyping import Float

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
from vision_sae.descriptions.scoring.similarity import patch_similarities
from vision_sae.evidence.overlaps import overlaps
from vision_sae.evidence.probe import Probe
from vision_sae.evidence.protocol import Evidence, Firing
from vision_sae.statistics.bootstrap import Counts
from vision_sae.statistics.ranking import Numbers


def on_evidence_grid(
    maps: Float[np.ndarray, "T r c"], probe: Probe, evidence: Evidence, image: int
) -> Float[np.ndarray, "T R C"]:
    """Maps of one picture, resampled from the probe's grid to the evidence's grid.

    Patches outside of the probe's view of the picture are NaN.
    """
    record = evidence.images[image]
    here = probe.preprocessing.geometry(record.width, record.height)
    shared = overlaps(evidence.grid, evidence.geometry(image), probe.grid, here)
    area = np.outer(shared.vertical.sum(1), shared.horizontal.sum(1))
    area[area == 0] = np.nan
    return np.asarray(shared.vertical @ maps @ shared.horizontal.T / area)


def _sums(predicted: Numbers, true: Numbers) -> Numbers:
    """A picture's sums for a correlation: number of patches, x, y, xx, yy, xy (6)."""
    shown = ~np.isnan(predicted)
    x, y = predicted[shown].astype(np.float64), true[shown].astype(np.float64)
    return np.array([len(x), x.sum(), y.sum(), x @ x, y @ y, x @ y])


def _pearson(sums: Numbers, drawn: Counts) -> Numbers:
    """Correlations (B) from pictures' `_sums` (n, 6) and their counts in each resample (B, n).

    The correlation of a constant is NaN.
    """
    n, x, y, xx, yy, xy = (drawn.astype(np.float64) @ sums).T
    variances = np.maximum(n * xx - x * x, 0) * np.maximum(n * yy - y * y, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((n * xy - x * y) / np.sqrt(np.where(variances > 0, variances, np.nan)))


def score(
    probe: Probe,
    evidence: Evidence,
    texts: Float[np.ndarray, "T E"],
    firings: Sequence[Firing],
    *,
    seed: int,
) -> Score | None:
    """Correlation of the map predicted by the first of ``texts``; the other texts are the control.

    The interval is over pictures. None when either map is constant.
    """
    if not firings:
        return None
    pictures = np.array([firing.image for firing in firings], dtype=np.int64)
    maps = patch_similarities(probe, pictures, texts)
    centre = maps.mean(axis=(1, 2, 3), keepdims=True)  # against cancellation in the sums
    sums = np.stack(
        [
            [_sums(p, firing.map) for p in on_evidence_grid(seen, probe, evidence, firing.image)]
            for seen, firing in zip(np.moveaxis(maps - centre, 1, 0), firings, strict=True)
        ],
        axis=1,
    )
    statistics = [partial(_pearson, of_text) for of_text in sums]
    return scored("simulation_pearson", statistics, [len(firings)], seed)


def _measure(request: ScoreRequest) -> list[Score]:
    result = score(
        request.probe, request.evidence, request.texts, request.case.firings, seed=request.seed
    )
    return [] if result is None else [result]


SIMULATION = register_score(
    ScoreKind(
        "simulation",
        (
            MetricKind(
                "simulation_pearson",
                FailedChecks(
                    EXTRA,
                    "It correlates patches of the pictures that fire the unit. It uses no silent "
                    "pictures, which a too wide label also fits.",
                ),
            ),
        ),
        __doc__,
        _measure,
    )
)

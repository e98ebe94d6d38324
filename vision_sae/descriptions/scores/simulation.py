"""Simulation: does the text say where in a picture the unit fires, and how strongly?

The cosines of the text with the patches are the predicted map. It is brought to the grid of the
unit's own model by overlapping area and compared with the activations by Pearson's correlation
over the patches of all pictures together.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from vision_sae.descriptions.evidence.protocol import Evidence, Firing
from vision_sae.descriptions.probe import Probe, overlaps
from vision_sae.descriptions.protocol import Score
from vision_sae.descriptions.scores.bootstrap import Counts, scored
from vision_sae.descriptions.scores.ranking import Numbers
from vision_sae.descriptions.scores.similarity import patch_similarities


def on_evidence_grid(
    maps: NDArray[np.float32], probe: Probe, evidence: Evidence, image: int
) -> NDArray[np.float32]:
    """Maps of one picture (T, rows, cols), from the probe's grid to the evidence's.

    Patches that the probe's model was not shown are NaN.
    """
    record = evidence.images[image]
    here = probe.preprocessing.geometry(record.width, record.height)
    shared = overlaps(evidence.grid, evidence.geometry(image), probe.grid, here)
    area = np.outer(shared.vertical.sum(1), shared.horizontal.sum(1))
    area[area == 0] = np.nan
    return np.asarray(shared.vertical @ maps @ shared.horizontal.T / area)


def _sums(predicted: Numbers, true: Numbers) -> Numbers:
    """What a picture contributes to a correlation: patches, x, y, xx, yy, xy (6)."""
    shown = ~np.isnan(predicted)
    x, y = predicted[shown].astype(np.float64), true[shown].astype(np.float64)
    return np.array([len(x), x.sum(), y.sum(), x @ x, y @ y, x @ y])


def _pearson(sums: Numbers, drawn: Counts) -> Numbers:
    """Correlations (B) of pictures' `_sums` (n, 6) drawn so often (B, n); NaN of a constant."""
    n, x, y, xx, yy, xy = (drawn.astype(np.float64) @ sums).T
    variances = np.maximum(n * xx - x * x, 0) * np.maximum(n * yy - y * y, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((n * xy - x * y) / np.sqrt(np.where(variances > 0, variances, np.nan)))


def score(
    probe: Probe,
    evidence: Evidence,
    texts: NDArray[np.float32],
    firings: Sequence[Firing],
    *,
    seed: int,
) -> Score | None:
    """Correlation of the map predicted by the first of ``texts`` (T, E); the others are the
    control. Its interval is over pictures. None when either map is constant."""
    if not firings:
        return None
    pictures = np.array([firing.image for firing in firings], dtype=np.int64)
    maps = patch_similarities(probe, pictures, texts)
    centre = maps.mean(axis=(1, 2, 3), keepdims=True)  # or the sums would cancel badly
    sums = np.stack(
        [
            [_sums(p, firing.map) for p in on_evidence_grid(seen, probe, evidence, firing.image)]
            for seen, firing in zip(np.moveaxis(maps - centre, 1, 0), firings, strict=True)
        ],
        axis=1,
    )
    statistics = [partial(_pearson, of_text) for of_text in sums]
    return scored("simulation_pearson", statistics, [len(firings)], seed)

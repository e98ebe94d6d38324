"""How the features of one dictionary are related: near in direction, fire together, cover another.

A feature's parent is a denser one that fires wherever it does, or nearly: families are a forest,
because a parent always fires on more patches than its child.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from vision_sae.bundles.co_activation import Activations
from vision_sae.bundles.codes import SparseRows

RELATED = 5
"""Features kept of each relation."""
_COVERED = 0.9
"""Share of a child's firing that its parent has a part in, at least."""
_LIFT = 2.0
"""How much more often the parent fires where its child does than elsewhere, at least: what fires
nearly everywhere is nobody's parent."""
_FEWEST = 10
"""Patches below which a feature is too rare to have a parent."""
_BLOCK = 512
_SEED = 5


class Relations(NamedTuple):
    """One row a feature; -1 where there is none."""

    nearest: NDArray[np.int32]
    """The features whose decoder directions are nearest (F, R), nearest first."""
    cosines: NDArray[np.float32]
    """Cosines of these directions (F, R)."""
    together: NDArray[np.int32]
    """The features whose activations go with its own (F, R), best first."""
    correlations: NDArray[np.float32]
    """Correlations of these over all patches (F, R)."""
    parent: NDArray[np.int32]
    """Of all features that cover its firing, the rarest (F)."""
    covered: NDArray[np.float32]
    """The share of its patches on which the parent fires (F)."""

    def children(self, feature: int) -> NDArray[np.int64]:
        """The features whose parent it is, those that it covers most first."""
        found = np.flatnonzero(self.parent == feature)
        return found[np.argsort(-self.covered[found], kind="stable")]


class Matches(NamedTuple):
    """The counterparts of features in another dictionary (see `vision_sae.bundles.matches`): one
    row a feature; -1 where there is no counterpart, as for a feature that never fires."""

    nearest: NDArray[np.int32]
    """The most similar feature of the other bundle (F)."""
    similarities: NDArray[np.float32]
    """How similar it is (F)."""
    partner: NDArray[np.int32]
    """The feature it is paired with one to one (F); all -1 where that was too much work."""
    partner_similarities: NDArray[np.float32]
    """How similar that is (F)."""


def relations(codes: SparseRows, decoder: Tensor) -> Relations:
    """The relations of the features of ``decoder`` (F, D) over the ``codes`` of all patches.

    Nothing of size F x F is held: features are looked at in blocks.
    """
    width, patches = len(decoder), len(codes.indptr) - 1
    count = min(RELATED, max(width - 1, 0))
    activations = Activations(codes, width)
    ones = np.ones(len(codes.indices), dtype=np.float32)
    fires = csr_array((ones, codes.indices, codes.indptr), (patches, width))
    fires_by_feature = fires.T.tocsr()
    counts = np.bincount(codes.indices, minlength=width)
    unit = F.normalize(decoder.float(), dim=1)

    made = Relations(
        np.full((width, count), -1, np.int32),
        np.zeros((width, count), np.float32),
        np.full((width, count), -1, np.int32),
        np.zeros((width, count), np.float32),
        np.full(width, -1, np.int32),
        np.zeros(width, np.float32),
    )
    for start in range(0, width, _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, width))
        own = (np.arange(len(rows)), rows)
        cosines = (unit[start : start + _BLOCK] @ unit.T).numpy()
        cosines[own] = -np.inf
        _keep(made.nearest, made.cosines, rows, cosines, np.ones(len(rows), dtype=bool))
        correlation = activations.correlations(rows, activations)
        correlation[own] = -np.inf
        _keep(made.together, made.correlations, rows, correlation, counts[rows] > 0)
        shared = (fires_by_feature[rows] @ fires).toarray()
        covered = shared / np.maximum(counts[rows, None], 1)
        denser = counts > counts[rows, None]
        usual = counts / max(patches, 1)
        fits = denser & (covered >= _COVERED) & (covered >= _LIFT * usual)
        fits &= (counts[rows] >= _FEWEST)[:, None]
        rarest = np.where(fits, counts, np.iinfo(np.int64).max).argmin(axis=1)
        found = fits.any(axis=1)
        made.parent[rows[found]] = rarest[found]
        made.covered[rows[found]] = covered[found, rarest[found]]
    return made


def _keep(
    features: NDArray[np.int32],
    strengths: NDArray[np.float32],
    rows: NDArray[np.int64],
    values: NDArray[np.floating[Any]],
    wanted: NDArray[np.bool_],
) -> None:
    """Keep the largest of each row of ``values`` (len(rows), F), of the rows ``wanted``."""
    count = features.shape[1]
    best = np.argsort(-values, axis=1, kind="stable")[:, :count]
    strongest = np.take_along_axis(values, best, axis=1)
    there = np.isfinite(strongest) & wanted[:, None]
    features[rows] = np.where(there, best, -1)
    strengths[rows] = np.where(there, strongest, 0)


def nearest_floor(width: int, dim: int) -> float:
    """Mean cosine to the nearest of ``width`` random directions of ``dim`` dimensions: what the
    nearest direction of a dictionary of this shape reaches by chance."""
    random = torch.Generator().manual_seed(_SEED)
    directions = F.normalize(torch.randn(width, dim, generator=random), dim=1)
    asked = F.normalize(torch.randn(min(width, _BLOCK), dim, generator=random), dim=1)
    return float((asked @ directions.T).amax(1).mean())

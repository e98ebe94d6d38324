"""Relations between the features of one dictionary: nearest directions, co-activation, parents.

A feature's parent is a denser feature that fires on (nearly) all patches of its child. Because a
parent always fires on more patches than its child, the parents form a forest.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int32, Int64
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from vision_sae.bundles.co_activation import Activations
from vision_sae.bundles.codes import SparseRows
from vision_sae.threads import map_in_threads

RELATED = 5
"""Number of features that are kept for each relation."""
_COVERED = 0.9
"""The least share of a child's patches on which its parent fires."""
_LIFT = 2.0
"""The least ratio of that share to the share of all patches on which the parent fires; it excludes
features that fire nearly everywhere."""
_FEWEST = 10
"""The fewest patches of a feature with a parent; rarer features have none."""
_BLOCK = 512
_SEED = 5


class Relations(NamedTuple):
    """The related features of each feature; -1 in empty slots."""

    nearest: Int32[np.ndarray, "F R"]
    """The features with the nearest decoder directions, nearest first."""
    cosines: Float32[np.ndarray, "F R"]
    """Cosines of these directions."""
    together: Int32[np.ndarray, "F R"]
    """The features with the most correlated activations, best first."""
    correlations: Float32[np.ndarray, "F R"]
    """Correlations of these activations over all patches."""
    parent: Int32[np.ndarray, " F"]
    """The rarest feature that covers the feature's patches."""
    covered: Float32[np.ndarray, " F"]
    """The share of the feature's patches on which the parent fires."""

    def children(self, feature: int) -> Int64[np.ndarray, " n"]:
        """The features with the parent ``feature``, by descending coverage."""
        children = np.flatnonzero(self.parent == feature)
        return children[np.argsort(-self.covered[children], kind="stable")]


class Matches(NamedTuple):
    """The counterpart of each feature in another dictionary (see `vision_sae.bundles.matches`); -1
    when there is none, as for a feature that never fires."""

    nearest: Int32[np.ndarray, " F"]
    """The most similar feature of the other bundle."""
    similarities: Float32[np.ndarray, " F"]
    """Similarity to the nearest feature."""
    partner: Int32[np.ndarray, " F"]
    """The partner in a one-to-one assignment; all -1 when the dictionaries are too wide for it."""
    partner_similarities: Float32[np.ndarray, " F"]
    """Similarity to the partner."""


def relations(codes: SparseRows, decoder: Float[Tensor, "F D"]) -> Relations:
    """The relations of the features of ``decoder`` over the ``codes`` of all patches.

    Features are processed in blocks, so that no array of size F x F is held in memory.
    """
    width, patches = len(decoder), len(codes.indptr) - 1
    count = min(RELATED, max(width - 1, 0))
    activations = Activations(codes, width)
    ones = np.ones(len(codes.indices), dtype=np.float32)
    fires = csr_array((ones, codes.indices, codes.indptr), (patches, width))
    fires_by_feature = fires.T.tocsr()
    counts = np.bincount(codes.indices, minlength=width)
    unit = F.normalize(decoder.float(), dim=1)

    related = Relations(
        np.full((width, count), -1, np.int32),
        np.zeros((width, count), np.float32),
        np.full((width, count), -1, np.int32),
        np.zeros((width, count), np.float32),
        np.full(width, -1, np.int32),
        np.zeros(width, np.float32),
    )

    def relate(start: int) -> None:
        rows = np.arange(start, min(start + _BLOCK, width))
        own = (np.arange(len(rows)), rows)
        cosines = (unit[start : start + _BLOCK] @ unit.T).numpy()
        cosines[own] = -np.inf
        _keep(related.nearest, related.cosines, rows, cosines, np.ones(len(rows), dtype=bool))
        correlation = activations.correlations(rows, activations)
        correlation[own] = -np.inf
        _keep(related.together, related.correlations, rows, correlation, counts[rows] > 0)
        children, parents, covered = _parents(fires_by_feature[rows] @ fires, rows, counts, patches)
        related.parent[children], related.covered[children] = parents, covered

    for _ in map_in_threads(relate, range(0, width, _BLOCK), torch.get_num_threads()):
        pass
    return related


def _parents(
    shared: csr_array, rows: NDArray[np.int64], counts: NDArray[np.int64], patches: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """(children, their parents, the shares that these cover) among the features ``rows``.

    ``shared`` (len(rows), F) is the number of patches on which two features fire together, and
    ``counts`` (F) that on which each feature fires.
    """
    entries = shared.tocoo()
    child, parent = rows[entries.row], entries.col
    covered = entries.data / counts[child]
    fits = (counts[parent] > counts[child]) & (counts[child] >= _FEWEST)
    fits &= (covered >= _COVERED) & (covered >= _LIFT * (counts[parent] / max(patches, 1)))
    child, parent, covered = child[fits], parent[fits], covered[fits]
    order = np.lexsort((parent, counts[parent], child))
    children, first = np.unique(child[order], return_index=True)
    return children, parent[order][first], covered[order][first]


def _keep(
    features: NDArray[np.int32],
    strengths: NDArray[np.float32],
    rows: NDArray[np.int64],
    values: NDArray[np.floating[Any]],
    wanted: NDArray[np.bool_],
) -> None:
    """Write the largest values of each row of ``values`` (len(rows), F), and their features, into
    ``strengths`` and ``features``; rows that are not ``wanted`` stay empty.

    Of equal values, those of lower features come first. The largest values are overwritten.
    """
    own = np.arange(len(rows))
    for place in range(features.shape[1]):
        best = values.argmax(axis=1)
        strongest = values[own, best]
        there = np.isfinite(strongest) & wanted
        features[rows, place] = np.where(there, best, -1)
        strengths[rows, place] = np.where(there, strongest, 0)
        values[own, best] = -np.inf


def nearest_floor(width: int, dim: int) -> float:
    """The chance level of the cosine to the nearest direction: its mean over ``width`` random
    directions in ``dim`` dimensions."""
    random = torch.Generator().manual_seed(_SEED)
    directions = F.normalize(torch.randn(width, dim, generator=random), dim=1)
    queries = F.normalize(torch.randn(min(width, _BLOCK), dim, generator=random), dim=1)
    return float((queries @ directions.T).amax(1).mean())

"""MonoSemanticity: whether the pictures that a feature fires on look alike (Pach et al. 2025).

For feature k over images with unit embeddings e_i and max-pooled activations a_ik, scaled to [0, 1]
by the feature's smallest and largest::

    MS_k = sum_{i<j} a_ik a_jk cos(e_i, e_j) / sum_{i<j} a_ik a_jk

No pair is ever formed: the numerator is ``(|sum_i a_ik e_i|^2 - sum_i a_ik^2) / 2`` and the
denominator ``((sum_i a_ik)^2 - sum_i a_ik^2) / 2``, so that time is linear in the images and
memory does not depend on them.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vision_sae.dictionaries.protocol import Codes
from vision_sae.errors import InvalidInputError

_DEVIATES = 1.96
"""Standard errors to either side of a 95 % interval."""


class FeatureMonosemanticity(NamedTuple):
    """MonoSemanticity of one feature."""

    value: float
    lower: float | None
    """Lower end of its 95 % interval, by the jackknife over sources; None for less than three."""
    upper: float | None
    images: int
    """Pictures that it rests on: those that fire the feature more than the weakest does."""


def max_pooled(codes: Codes, patches: int, width: int) -> Tensor:
    """Codes of whole images, ``patches`` rows each -> largest activation per image (N, F)."""
    images = len(codes.indices) // patches
    shape = (images, patches * codes.indices.shape[1])
    pooled = torch.zeros(images, width)
    return pooled.scatter_reduce_(
        1, codes.indices.reshape(shape), codes.values.reshape(shape), "amax"
    )


class MonosemanticityAccumulator:
    """Accumulates `MonoSemanticity` over images in any order and batching, in float64."""

    def __init__(self, width: int, embedding_dim: int) -> None:
        self._images = 0
        self._total = torch.zeros(width, dtype=torch.float64)
        self._square = torch.zeros(width, dtype=torch.float64)
        self._low = torch.full((width,), torch.inf, dtype=torch.float64)
        self._at_low = torch.zeros(width, dtype=torch.int64)
        self._high = torch.full((width,), -torch.inf, dtype=torch.float64)
        self._weighted = torch.zeros(width, embedding_dim, dtype=torch.float64)
        self._embedding = torch.zeros(embedding_dim, dtype=torch.float64)

    def add(self, activations: Tensor, embeddings: Tensor) -> None:
        """Add images: their max-pooled activations (N, F) and their embeddings (N, E), any norm.

        Raises `InvalidInputError` for an embedding without direction.
        """
        if not len(activations):
            return
        a, e = activations.double(), embeddings.double()
        norm = e.norm(dim=1)
        if not (norm > 0).all() or not torch.isfinite(norm).all():
            raise InvalidInputError(
                "an image's embedding is zero or not finite, so that nothing is similar to it; "
                "leave the image out",
                field="embeddings",
            )
        e = F.normalize(e, dim=1)
        low = torch.minimum(self._low, a.amin(0))
        self._at_low = torch.where(low < self._low, 0, self._at_low) + (a == low).sum(0)
        self._low = low
        self._images += len(a)
        self._total += a.sum(0)
        self._square += a.square().sum(0)
        self._high = torch.maximum(self._high, a.amax(0))
        self._weighted += a.T @ e
        self._embedding += e.sum(0)

    def result(self) -> Tensor:
        """MonoSemanticity of each feature (F), float64, in [-1, 1].

        Activations are scaled by their smallest and largest over all images, as in the paper. NaN
        for a feature that this leaves positive on less than two images: there is no pair.
        """
        n, low = self._images, self._low
        scale = self._high - low
        # Moments of (a - low) / scale, from those of a.
        total = (self._total - n * low) / scale
        square = (self._square - 2 * low * self._total + n * low.square()) / scale.square()
        weighted = (self._weighted - low[:, None] * self._embedding) / scale[:, None]
        pairs = total.square() - square
        defined = (n - self._at_low > 1) & (pairs > 0)
        similar = (weighted.square().sum(1) - square) / pairs
        return similar.clamp(-1, 1).where(defined, torch.nan)

    def floor(self) -> float:
        """What a feature scores that fires alike on all images: the mean cosine of two images."""
        return _mean_cosine(float(self._embedding.square().sum()), self._images)


def _mean_cosine(square: float, n: int) -> float:
    """The mean cosine of two of ``n`` unit vectors whose sum has this ``square``; NaN for one."""
    return (square - n) / (n * (n - 1)) if n > 1 else math.nan


def floor(embeddings: NDArray[np.floating]) -> float:
    """What a feature scores that fires alike on all images (N, E): the mean cosine of two of them;
    NaN for less than two, or where one has no direction."""
    norms = np.linalg.norm(embeddings.astype(np.float64), axis=1)
    if not np.all(np.isfinite(norms) & (norms > 0)):
        return math.nan
    total = (embeddings / norms[:, None]).sum(0)
    return _mean_cosine(float(total @ total), len(embeddings))


def monosemanticity(activations: Tensor, embeddings: Tensor) -> Tensor:
    """MonoSemanticity of each feature (F) from activations (N, F) and embeddings (N, E)."""
    found = MonosemanticityAccumulator(activations.shape[1], embeddings.shape[1])
    found.add(activations, embeddings)
    return found.result()


def of_feature(
    activations: NDArray[np.floating], embeddings: NDArray[np.floating], sources: NDArray[np.int64]
) -> FeatureMonosemanticity | None:
    """MonoSemanticity of one feature with its interval, from its max-pooled activations (N), the
    embeddings (N, E), of any norm, and the sources (N) of the images.

    None where it is undefined: it is above its smallest on less than two images, or one of these
    has an embedding without direction.
    """
    a = activations.astype(np.float64)
    a -= a.min(initial=np.inf)  # of no image: nothing
    above = np.flatnonzero(a)
    if len(above) < 2:
        return None
    a = a[above] / a.max()
    e = embeddings[above].astype(np.float64)
    norms = np.linalg.norm(e, axis=1, keepdims=True)
    if not np.all(np.isfinite(norms) & (norms > 0)):
        return None
    weighted = a[:, None] * e / norms
    names, group = np.unique(sources[above], return_inverse=True)
    # Of each source: sum of a, of a^2, and of a e. Leaving one out takes its share from the whole.
    total, square = (np.bincount(group, values, len(names)) for values in (a, a**2))
    vector = np.zeros((len(names), e.shape[1]))
    np.add.at(vector, group, weighted)
    every = vector.sum(0)

    def ratio(t: NDArray[np.float64], s: NDArray[np.float64], v: NDArray[np.float64]) -> Any:
        return ((v**2).sum(-1) - s) / (t**2 - s)

    value = float(np.clip(ratio(total.sum(), square.sum(), every), -1, 1))
    left = total.sum() - total
    if len(names) < 3 or np.any(left**2 <= square.sum() - square):
        return FeatureMonosemanticity(value, None, None, len(above))
    others = ratio(left, square.sum() - square, every - vector)
    error = np.sqrt((len(names) - 1) / len(names) * ((others - others.mean()) ** 2).sum())
    ends = np.clip([value - _DEVIATES * error, value + _DEVIATES * error], -1, 1)
    return FeatureMonosemanticity(value, float(ends[0]), float(ends[1]), len(above))

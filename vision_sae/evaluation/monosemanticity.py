"""MonoSemanticity: whether the pictures that a feature fires on look alike (Pach et al. 2025).

For feature k over images with unit embeddings e_i and max-pooled activations a_ik, scaled to [0, 1]
by the feature's smallest and largest::

    MS_k = sum_{i<j} a_ik a_jk cos(e_i, e_j) / sum_{i<j} a_ik a_jk

No pair is formed explicitly: the numerator is ``(|sum_i a_ik e_i|^2 - sum_i a_ik^2) / 2`` and the
denominator ``((sum_i a_ik)^2 - sum_i a_ik^2) / 2``, so that time is linear in the images and
memory does not depend on them.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int64, Num
from numpy.typing import NDArray
from torch import Tensor

from vision_sae.dictionaries.protocol import Codes
from vision_sae.errors import InvalidInputError
from vision_sae.transfers import finest_float

_DEVIATES = 1.96
"""Standard errors to either side of a 95 % interval."""


class FeatureMonosemanticity(NamedTuple):
    """MonoSemanticity of one feature."""

    value: float
    lower: float | None
    """Lower end of the 95 % interval, by the jackknife over sources; None for fewer than three
    sources."""
    upper: float | None
    images: int
    """Pictures that count: those on which the feature exceeds its smallest activation."""


def max_pooled(codes: Codes, patches: int, width: int) -> Float[Tensor, "N F"]:
    """The largest activation of each feature in each picture, from codes of whole pictures with
    ``patches`` rows each."""
    images = len(codes.indices) // patches
    shape = (images, patches * codes.indices.shape[1])
    pooled = torch.zeros(images, width, device=codes.values.device)
    return pooled.scatter_reduce_(
        1, codes.indices.reshape(shape), codes.values.reshape(shape), "amax"
    )


class MonosemanticityAccumulator:
    """Accumulates `MonoSemanticity` over images in any order and batching, in float64.

    Sums stay on ``device``, where the activations are, until the result is read.
    """

    def __init__(self, width: int, embedding_dim: int, device: torch.device | str = "cpu") -> None:
        device = torch.device(device)
        self._device, self._wide = device, finest_float(device)
        zeros = partial(torch.zeros, dtype=self._wide, device=device)
        self._images = 0
        self._total, self._square = zeros(width), zeros(width)
        self._low, self._high = zeros(width) + torch.inf, zeros(width) - torch.inf
        self._at_low = torch.zeros(width, dtype=torch.int64, device=device)
        self._weighted = zeros(width, embedding_dim)
        self._embedding = zeros(embedding_dim)

    def add(self, activations: Num[Tensor, "N F"], embeddings: Float[Tensor, "N E"]) -> None:
        """Add the max-pooled activations of pictures, and their embeddings in host memory, of any
        norm.

        Raises `InvalidInputError` for an embedding without direction.
        """
        if not len(activations):
            return
        norm = embeddings.double().norm(dim=1)
        if not (norm > 0).all() or not torch.isfinite(norm).all():
            raise InvalidInputError(
                "an image's embedding is zero or not finite, so that nothing is similar to it; "
                "leave the image out",
                field="embeddings",
            )
        a = activations.to(self._wide)
        e = F.normalize(embeddings.to(self._device, self._wide), dim=1)
        low = torch.minimum(self._low, a.amin(0))
        self._at_low = torch.where(low < self._low, 0, self._at_low) + (a == low).sum(0)
        self._low = low
        self._images += len(a)
        self._total += a.sum(0)
        self._square += a.square().sum(0)
        self._high = torch.maximum(self._high, a.amax(0))
        self._weighted += a.T @ e
        self._embedding += e.sum(0)

    def result(self) -> Float64[Tensor, " F"]:
        """MonoSemanticity of each feature, in [-1, 1].

        Activations are scaled by their smallest and largest over all images, as in the paper. NaN
        for a feature whose scaled activation is positive on fewer than two images: no pair exists.
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
        return similar.clamp(-1, 1).where(defined, torch.nan).cpu()

    def floor(self) -> float:
        """The score of a feature that fires equally on all images: the mean cosine of two
        images."""
        return _mean_cosine(float(self._embedding.square().sum()), self._images)


def _mean_cosine(square: float, n: int) -> float:
    """The mean cosine of two of ``n`` unit vectors whose sum has this ``square``; NaN for one."""
    return (square - n) / (n * (n - 1)) if n > 1 else math.nan


def floor(embeddings: Float[np.ndarray, "N E"]) -> float:
    """The score of a feature that fires equally on all images: the mean cosine of two images; NaN
    for fewer than two images, or where an embedding has no direction."""
    norms = np.linalg.norm(embeddings.astype(np.float64), axis=1)
    if not np.all(np.isfinite(norms) & (norms > 0)):
        return math.nan
    total = (embeddings / norms[:, None]).sum(0)
    return _mean_cosine(float(total @ total), len(embeddings))


def monosemanticity(
    activations: Num[Tensor, "N F"], embeddings: Float[Tensor, "N E"]
) -> Float64[Tensor, " F"]:
    """MonoSemanticity of each feature."""
    accumulator = MonosemanticityAccumulator(activations.shape[1], embeddings.shape[1])
    accumulator.add(activations, embeddings)
    return accumulator.result()


def of_feature(
    activations: Num[np.ndarray, " N"],
    embeddings: Float[np.ndarray, "N E"],
    sources: Int64[np.ndarray, " N"],
) -> FeatureMonosemanticity | None:
    """MonoSemanticity of one feature with its interval, from max-pooled activations, embeddings of
    any norm, and the sources of the images.

    None where the score is undefined: fewer than two images exceed the smallest activation, or one
    of these images has an embedding without direction.
    """
    a = activations.astype(np.float64)
    a -= a.min(initial=np.inf)  # of no image: the array stays empty
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

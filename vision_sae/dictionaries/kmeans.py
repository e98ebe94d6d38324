"""k-means: one feature a cluster, and one feature a vector."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from vision_sae.dictionaries.atoms import Atoms
from vision_sae.dictionaries.protocol import Codes
from vision_sae.dictionaries.sample import SAMPLE_ROWS, sample
from vision_sae.errors import InvalidInputError

_BATCH = 4096


def cluster(vectors: Tensor, width: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """(centroids (F, D), the cluster of each vector (N)) by scikit-learn's MiniBatchKMeans.

    Raises `InvalidInputError` when there are fewer vectors than clusters.
    """
    from sklearn.cluster import (  # type: ignore[import-untyped]  # slow to import: only to fit
        MiniBatchKMeans,
    )

    if not 1 <= width <= len(vectors):
        raise InvalidInputError(
            f"{width} clusters asked for, {len(vectors)} site vectors make 1 to {len(vectors)}; "
            "choose another width or harvest more pictures",
            field="width",
        )
    found = MiniBatchKMeans(width, batch_size=_BATCH, random_state=seed).fit(vectors.numpy())
    centroids, labels = found.cluster_centers_, found.labels_
    return torch.from_numpy(centroids).float(), torch.from_numpy(labels).long()


class KMeans(Atoms):
    """The nearest centroid c fires, if at all.

    Its direction d is that of ``c - mean``, its activation the best non-negative coefficient of d:
    ``max(0, (x - mean) . d)``. So a vector at the centroid decodes to the centroid, one that is
    like it but stronger to a stronger one, and the zero code to the mean, which is the bias.
    """

    architecture = "kmeans"

    def __init__(self, *, radii: Tensor, **weights: Tensor) -> None:
        """Take the weights of `Atoms`, and ``radii`` (F): the centroids' distances to the mean."""
        super().__init__(k=1, **weights)
        self.radii = radii

    @classmethod
    def fit(
        cls, batches: Iterable[Tensor], *, width: int, rows: int = SAMPLE_ROWS, seed: int = 0
    ) -> Self:
        """``width`` clusters of a sample of ``rows`` rows of batches (N, D), read in one pass.

        Raises `InvalidInputError` when there are fewer rows than clusters.
        """
        vectors = sample(batches, rows, seed=seed)
        mean = vectors.double().mean(0).float()
        centroids, _ = cluster(vectors - mean, width, seed=seed)
        return cls(w_dec=F.normalize(centroids), b_dec=mean, radii=centroids.norm(dim=1))

    def settings(self) -> dict[str, Any]:
        """None: k is always 1."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """The radii."""
        return {"radii": self.radii}

    def encode_rows(self, vectors: Tensor) -> Codes:
        """The nearest centroid: the one with the least ``|c|^2 - 2 x . c``, both about the mean."""
        along = (vectors - self.b_dec) @ self.w_dec.T
        nearest = (self.radii.square() - 2 * self.radii * along).argmin(1, keepdim=True)
        return Codes(nearest, along.gather(1, nearest).relu())

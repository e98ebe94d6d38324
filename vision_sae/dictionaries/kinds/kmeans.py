"""k-means: one feature per cluster, of which the nearest fires."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from vision_sae.dictionaries.architectures import ARCHITECTURES, Architecture, Fitting
from vision_sae.dictionaries.atoms import Atoms
from vision_sae.dictionaries.protocol import Codes
from vision_sae.dictionaries.sample import SAMPLE_ROWS, sample
from vision_sae.errors import InvalidInputError

_BATCH = 4096


def cluster(
    vectors: Float[Tensor, "N D"], width: int, *, seed: int
) -> tuple[Float[Tensor, "F D"], Int64[Tensor, " N"]]:
    """(centroids, the cluster of each vector) by scikit-learn's MiniBatchKMeans.

    Raises `InvalidInputError` if there are fewer vectors than clusters.
    """
    from sklearn.cluster import (  # type: ignore[import-untyped]  # slow to import
        MiniBatchKMeans,
    )

    if not 1 <= width <= len(vectors):
        raise InvalidInputError(
            f"{len(vectors)} site vectors make 1 to {len(vectors)} clusters, not {width}; choose "
            "another width or harvest more pictures",
            field="width",
        )
    fitted = MiniBatchKMeans(width, batch_size=_BATCH, random_state=seed).fit(vectors.numpy())
    centroids, labels = fitted.cluster_centers_, fitted.labels_
    return torch.from_numpy(centroids).float(), torch.from_numpy(labels).long()


class KMeans(Atoms):
    """At most one feature fires: the feature of the nearest centroid c.

    The feature's direction d is the unit vector along ``c - mean``. The activation is the best
    non-negative coefficient of d, ``max(0, (x - mean) . d)``. So a vector at the centroid decodes
    to the centroid, and a code without an active feature to the mean, which is the bias.
    """

    architecture = "kmeans"

    def __init__(self, *, radii: Float[Tensor, " F"], **weights: Tensor) -> None:
        """Take the weights of `Atoms`, and ``radii``, the distances of centroids to the mean."""
        super().__init__(k=1, **weights)
        self.radii = radii

    @classmethod
    def fit(
        cls, batches: Iterable[Tensor], *, width: int, rows: int = SAMPLE_ROWS, seed: int = 0
    ) -> Self:
        """Fit ``width`` clusters to a sample of ``rows`` rows of batches (N, D), in one pass.

        Raises `InvalidInputError` if there are fewer rows than clusters.
        """
        vectors = sample(batches, rows, seed=seed)
        mean = vectors.double().mean(0).float()
        centroids, _ = cluster(vectors - mean, width, seed=seed)
        return cls(w_dec=F.normalize(centroids), b_dec=mean, radii=centroids.norm(dim=1))

    def settings(self) -> dict[str, Any]:
        """No settings: k is always 1."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """The radii."""
        return {"radii": self.radii}

    def encode_rows(self, vectors: Float[Tensor, "N D"]) -> Codes:
        """The centroid with the least ``|c|^2 - 2 x . c``, with the mean subtracted from both."""
        along = (vectors - self.b_dec) @ self.w_dec.T
        nearest = (self.radii.square() - 2 * self.radii * along).argmin(1, keepdim=True)
        return Codes(nearest, along.gather(1, nearest).relu())


def _fit(batches: Iterable[Tensor], wanted: Fitting) -> KMeans:
    return KMeans.fit(batches, width=wanted.features, rows=wanted.rows, seed=wanted.seed)


ARCHITECTURES.register(Architecture(KMeans, fit=_fit))

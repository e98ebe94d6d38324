"""Principal component analysis: two features per direction, one for each sign."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

import torch
from jaxtyping import Float, Float64
from scipy.linalg import eigh
from torch import Tensor

from vision_sae.dictionaries.architectures import ARCHITECTURES, Architecture, Fitting
from vision_sae.dictionaries.atoms import Atoms, strongest
from vision_sae.dictionaries.protocol import Codes
from vision_sae.errors import InvalidInputError


def mean_and_covariance(
    batches: Iterable[Tensor],
) -> tuple[Float64[Tensor, " D"], Float64[Tensor, "D D"]]:
    """(mean, covariance) of all rows of batches (N, D), in one pass.

    The mean of the first batch is subtracted first, so that a large mean costs no precision.
    Raises `InvalidInputError` for fewer than two rows.
    """
    rows, origin = 0, torch.zeros(())
    total, squares = torch.zeros(()), torch.zeros(())
    for batch in batches:
        x = batch.double()
        if not rows:
            origin = x.mean(0)
        x = x - origin
        rows, total, squares = rows + len(x), total + x.sum(0), squares + x.T @ x
    if rows < 2:
        raise InvalidInputError(
            f"{rows} site vectors have no principal directions; harvest more pictures",
            field="store",
        )
    shift = total / rows
    return origin + shift, (squares - rows * torch.outer(shift, shift)) / (rows - 1)


class Pca(Atoms):
    """Features of C principal directions p, in descending order of variance.

    Feature i fires with ``(x - mean) . p_i`` and feature C + i with the negative of it. The bias is
    the mean. The sign of a direction is chosen so that its largest entry is positive.
    """

    architecture = "pca"

    @classmethod
    def fit(
        cls, batches: Iterable[Tensor], *, components: int | None = None, k: int | None = None
    ) -> Self:
        """Exact analysis of all rows of batches (N, D), in one pass; memory O(D^2).

        There are two features for each of ``components`` directions, which are D by default. ``k``
        keeps the k largest activations of a row. Raises `InvalidInputError` for more components
        than D.
        """
        mean, covariance = mean_and_covariance(batches)
        dim = len(mean)
        components = dim if components is None else components
        if not 1 <= components <= dim:
            raise InvalidInputError(
                f"vectors of {dim} dimensions have 1 to {dim} components, not {components}",
                field="components",
            )
        _, vectors = eigh(covariance.numpy(), subset_by_index=[dim - components, dim - 1])
        directions = torch.from_numpy(vectors.T.copy()).flip(0)  # eigh's variances ascend
        largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
        directions = (directions * largest.sign()).float()
        return cls(w_dec=torch.cat([directions, -directions]), b_dec=mean.float(), k=k)

    def gradient(self, feature: int) -> Float[Tensor, " D"] | None:
        """The direction of a feature: the activation is the projection on it."""
        return self.w_dec[feature]

    def encode_rows(self, vectors: Float[Tensor, "N D"]) -> Codes:
        """The positive parts of the projections on the directions and on their negatives."""
        along = (vectors - self.b_dec) @ self.w_dec[: self.width // 2].T
        return strongest(torch.cat([along, -along], dim=1), self.k)


def _fit(batches: Iterable[Tensor], wanted: Fitting) -> Pca:
    """Two features per component; all components without a width."""
    most = 2 * wanted.dim
    width = most if wanted.width is None else wanted.width
    if width % 2 or not 2 <= width <= most:
        raise InvalidInputError(
            f"PCA has two features per component: the width is even, from 2 to {most} for vectors "
            f"of {wanted.dim} dimensions, not {width}; give such a width, or none for all",
            field="width",
        )
    return Pca.fit(batches, components=width // 2, k=wanted.k)


ARCHITECTURES.register(Architecture(Pca, fit=_fit))

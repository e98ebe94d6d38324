"""Principal component analysis, each direction as two features: one for either sign."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

import torch
from scipy.linalg import eigh
from torch import Tensor

from vision_sae.dictionaries.atoms import Atoms, strongest
from vision_sae.dictionaries.protocol import Codes
from vision_sae.errors import InvalidInputError


def mean_and_covariance(batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """(mean (D), covariance (D, D)) of all rows of batches (N, D), float64, in one pass.

    The sums are taken about the mean of the first batch, so that a large mean costs no precision.
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
    """With C principal directions p, of descending variance, feature i fires with
    ``(x - mean) . p_i`` and feature C + i with its negative. The bias is the mean.

    Each direction's sign is the one that makes its largest entry positive.
    """

    architecture = "pca"

    @classmethod
    def fit(
        cls, batches: Iterable[Tensor], *, components: int | None = None, k: int | None = None
    ) -> Self:
        """Exact analysis of all rows of batches (N, D), in one pass; memory O(D^2).

        ``components`` directions, D when not given, make twice as many features; ``k`` keeps the k
        largest activations of a row. Raises `InvalidInputError` for more components than D.
        """
        mean, covariance = mean_and_covariance(batches)
        dim = len(mean)
        components = dim if components is None else components
        if not 1 <= components <= dim:
            raise InvalidInputError(
                f"{components} components asked for, vectors of {dim} dimensions have 1 to {dim}",
                field="components",
            )
        _, vectors = eigh(covariance.numpy(), subset_by_index=[dim - components, dim - 1])
        directions = torch.from_numpy(vectors.T.copy()).flip(0)  # eigh's variances ascend
        largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
        directions = (directions * largest.sign()).float()
        return cls(w_dec=torch.cat([directions, -directions]), b_dec=mean.float(), k=k)

    def slope(self, feature: int) -> Tensor | None:
        """The direction of a feature (D), which is what its activation is measured along."""
        return self.w_dec[feature]

    def encode_rows(self, vectors: Tensor) -> Codes:
        """Project on the directions; keep what is positive of either sign."""
        along = (vectors - self.b_dec) @ self.w_dec[: self.width // 2].T
        return strongest(torch.cat([along, -along], dim=1), self.k)

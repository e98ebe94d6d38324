"""The neurons themselves as features, so that a plain layer can be labelled like a dictionary."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from vision_sae.dictionaries.architectures import ARCHITECTURES, Architecture, Fitting
from vision_sae.dictionaries.atoms import Atoms, strongest
from vision_sae.dictionaries.protocol import Codes, to_dense
from vision_sae.errors import InvalidInputError


class NeuronBasis(Atoms):
    """Feature i fires with the value of dimension i, where the value is positive; the bias is zero.

    So each neuron of an MLP has one feature, with the neuron's number. Negative values (GELU's
    small tail, or half of a block update) are dropped. With both signs there are 2 D features:
    feature D + i fires with the value -x_i, and the reconstruction of any vector is exact.
    """

    architecture = "neurons"

    @classmethod
    def fit(cls, batches: Iterable[Tensor], *, signed: bool = False, k: int | None = None) -> Self:
        """The basis for batches (N, D); only the first batch is read, for its D.

        ``signed`` adds the features of negative values; ``k`` keeps the k largest of a row. Raises
        `InvalidInputError` without a batch.
        """
        first = next(iter(batches), None)
        if first is None:
            raise InvalidInputError(
                "there are no site vectors, so their length is unknown; harvest some pictures",
                field="store",
            )
        dim = first.shape[1]
        positive = torch.eye(dim)
        w_dec = torch.cat([positive, -positive]) if signed else positive
        return cls(w_dec=w_dec, b_dec=torch.zeros(dim), k=k)

    @property
    def signed(self) -> bool:
        """Whether negative values have features."""
        return self.width == 2 * self.dim

    def gradient(self, feature: int) -> Float[Tensor, " D"] | None:
        """The direction of a feature: the activation is the projection on it."""
        return self.w_dec[feature]

    def encode_rows(self, vectors: Float[Tensor, "N D"]) -> Codes:
        """The positive values, and with both signs the negative values' magnitudes."""
        activations = torch.cat([vectors, -vectors], dim=1) if self.signed else vectors
        return strongest(activations, self.k)

    def decode(self, codes: Codes) -> Float[Tensor, "N D"]:
        """Write the values back into their dimensions, without rounding."""
        dense = to_dense(codes, self.width)
        return dense[:, : self.dim] - dense[:, self.dim :] if self.signed else dense


def _fit(batches: Iterable[Tensor], wanted: Fitting) -> NeuronBasis:
    """D features, or 2 D with both signs."""
    dim, width = wanted.dim, wanted.width
    if width not in (None, dim, 2 * dim):
        raise InvalidInputError(
            f"vectors of {dim} dimensions have {dim} neurons, or {2 * dim} with both signs, not "
            f"{width}; give one of these widths or none",
            field="width",
        )
    return NeuronBasis.fit(batches, signed=width == 2 * dim, k=wanted.k)


ARCHITECTURES.register(Architecture(NeuronBasis, fit=_fit))

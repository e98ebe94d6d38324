"""The neurons themselves as features, so that a plain layer can be labelled like a dictionary."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

import torch
from torch import Tensor

from vision_sae.dictionaries.atoms import Atoms, strongest
from vision_sae.dictionaries.protocol import Codes, to_dense
from vision_sae.errors import InvalidInputError


class NeuronBasis(Atoms):
    """Feature i fires with the value of dimension i, where that is positive; the bias is zero.

    That is what the neurons of an MLP need: one feature a neuron, of the neuron's number. Of
    negative values (GELU's small tail, or half of a block update) nothing is kept. With both signs
    there are 2 D features: feature D + i fires with the value of -x_i, and the reconstruction of
    any vector is exact.
    """

    architecture = "neurons"

    @classmethod
    def fit(cls, batches: Iterable[Tensor], *, signed: bool = False, k: int | None = None) -> Self:
        """The basis for batches (N, D), of which only the first is looked at, for its D.

        ``signed`` adds the features of negative values; ``k`` keeps the k largest of a row.
        """
        first = next(iter(batches), None)
        if first is None:
            raise InvalidInputError(
                "there are no site vectors to tell their length by; harvest some pictures",
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

    def slope(self, feature: int) -> Tensor | None:
        """The direction of a feature (D), which is what its activation is measured along."""
        return self.w_dec[feature]

    def encode_rows(self, vectors: Tensor) -> Codes:
        """The values, as they are."""
        activations = torch.cat([vectors, -vectors], dim=1) if self.signed else vectors
        return strongest(activations, self.k)

    def decode(self, codes: Codes) -> Tensor:
        """Put the values back: exact for whatever fired."""
        dense = to_dense(codes, self.width)
        return dense[:, : self.dim] - dense[:, self.dim :] if self.signed else dense

"""Several dictionaries as one (Gadgil et al. 2025, "Ensembling Sparse Autoencoders")."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from vision_sae.dictionaries.kernels import bag
from vision_sae.dictionaries.protocol import Codes, Dictionary
from vision_sae.errors import InvalidInputError


class Ensemble:
    """The features of all members side by side, those of the first member first."""

    architecture: str

    def __init__(self, members: Sequence[Dictionary]) -> None:
        """Take dictionaries of one dimension D; raises `InvalidInputError` otherwise."""
        dims = {member.dim for member in members}
        if len(dims) != 1:
            raise InvalidInputError(
                f"an ensemble needs members of one dimension, not of {sorted(dims)}",
                field="members",
            )
        self.members = list(members)
        self._offsets = torch.tensor([0, *(m.width for m in members)]).cumsum(0)

    @property
    def dim(self) -> int:
        """Length D of a site vector."""
        return self.members[0].dim

    @property
    def width(self) -> int:
        """Number F of features of all members together."""
        return int(self._offsets[-1])

    @property
    def decoder(self) -> Tensor:
        """Feature directions (F, D)."""
        return torch.cat([member.decoder for member in self.members])

    @property
    def bias(self) -> Tensor:
        """What the zero code decodes to (D)."""
        return torch.stack([member.bias for member in self.members]).sum(0)

    def _joined(self, codes: Sequence[Codes]) -> Codes:
        """The members' codes of the same rows, features renumbered; those that fire first."""
        shifted = [c.indices + offset for c, offset in zip(codes, self._offsets, strict=False)]
        indices, values = torch.cat(shifted, 1), torch.cat([c.values for c in codes], 1)
        order = (values <= 0).sort(dim=1, stable=True).indices
        return Codes(indices.gather(1, order), values.gather(1, order))

    def encode(self, vectors: Tensor) -> Codes:
        """Site vectors (N, D) -> `Codes`."""
        raise TypeError(f"{type(self).__name__} is not an architecture: it lacks `encode`")

    def decode(self, codes: Codes) -> Tensor:
        """`Codes` of N vectors -> reconstructions (N, D)."""
        return bag(codes.indices, codes.values, self.decoder) + self.bias

    def slope(self, feature: int) -> Tensor | None:
        """None: members may see what others leave."""
        return None

    def save(self, directory: Path) -> dict[str, Any]:
        """Write every member into a directory of its own."""
        described = []
        for number, member in enumerate(self.members):
            place = directory / _place(number)
            place.mkdir()
            described.append(member.save(place))
        return {
            "architecture": self.architecture,
            "dim": self.dim,
            "width": self.width,
            "members": described,
        }

    @classmethod
    def load(cls, directory: Path, config: dict[str, Any]) -> Self:
        """Read what `save` wrote."""
        from vision_sae.dictionaries.architectures import read_weights

        return cls(
            [
                read_weights(directory / _place(number), described)
                for number, described in enumerate(config["members"])
            ]
        )


def _place(number: int) -> str:
    return f"member-{number:02d}"


class Bagging(Ensemble):
    """Members trained from different seeds; the reconstruction is the mean of theirs."""

    architecture = "bagging"

    @property
    def decoder(self) -> Tensor:
        """Feature directions (F, D): the members' over their number."""
        return super().decoder / len(self.members)

    @property
    def bias(self) -> Tensor:
        """The mean of the members' biases (D)."""
        return super().bias / len(self.members)

    def slope(self, feature: int) -> Tensor | None:
        """That of the member whose feature it is (D)."""
        member = int((self._offsets <= feature).sum()) - 1
        return self.members[member].slope(feature - int(self._offsets[member]))

    def encode(self, vectors: Tensor) -> Codes:
        """Site vectors (N, D) -> `Codes`: every member encodes them."""
        return self._joined([member.encode(vectors) for member in self.members])


class Boosting(Ensemble):
    """Each member trained on what those before it left over; the reconstruction is their sum."""

    architecture = "boosting"

    def encode(self, vectors: Tensor) -> Codes:
        """Site vectors (N, D) -> `Codes`: every member encodes what is left over."""
        left, codes = vectors.float(), []
        for member in self.members:
            codes.append(member.encode(left))
            left = left - member.decode(codes[-1])
        return self._joined(codes)


def residual_after(members: Sequence[Dictionary], vectors: Tensor) -> Tensor:
    """What boosting ``members`` leave over of site vectors (N, D)."""
    left = vectors.float()
    for member in members:
        left = left - member.decode(member.encode(left))
    return left

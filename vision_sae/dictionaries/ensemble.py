"""Several dictionaries as one (Gadgil et al. 2025, "Ensembling Sparse Autoencoders")."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from vision_sae.dictionaries.architectures import read_weights
from vision_sae.dictionaries.kernels import bag
from vision_sae.dictionaries.protocol import Codes, Dictionary
from vision_sae.dictionaries.resident import resident
from vision_sae.errors import InvalidInputError


class Ensemble:
    """The features of all members side by side, in the order of the members."""

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
    def decoder(self) -> Float[Tensor, "F D"]:
        """The members' feature directions."""
        return torch.cat([member.decoder for member in self.members])

    @property
    def bias(self) -> Float[Tensor, " D"]:
        """The sum of the members' biases."""
        return torch.stack([member.bias for member in self.members]).sum(0)

    def _joined(self, codes: Sequence[Codes]) -> Codes:
        """The members' codes of the same rows as one, features renumbered, active slots first."""
        shifted = [c.indices + offset for c, offset in zip(codes, self._offsets, strict=False)]
        indices, values = torch.cat(shifted, 1), torch.cat([c.values for c in codes], 1)
        order = (values <= 0).sort(dim=1, stable=True).indices
        return Codes(indices.gather(1, order), values.gather(1, order))

    def encode(self, vectors: Float[Tensor, "N D"]) -> Codes:
        """Site vectors -> `Codes`."""
        raise TypeError(f"{type(self).__name__} is not an architecture: it lacks `encode`")

    def decode(self, codes: Codes) -> Float[Tensor, "N D"]:
        """`Codes` of N vectors -> reconstructions."""
        return bag(codes.indices, codes.values, self.decoder) + self.bias

    def gradient(self, feature: int) -> Float[Tensor, " D"] | None:
        """None: a member may encode the residual of other members."""
        return None

    def to(self, device: torch.device) -> Self:
        """See `Dictionary.to`."""
        return type(self)([member.to(device) for member in self.members])

    def save(self, directory: Path) -> dict[str, Any]:
        """Write each member into its own directory. Returns the manifest entries."""
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
        return cls(
            [
                read_weights(directory / _place(number), described)
                for number, described in enumerate(config["members"])
            ]
        )


def _place(number: int) -> str:
    return f"member-{number:02d}"


class Bagging(Ensemble):
    """Members trained from different seeds; the reconstruction is the mean over the members."""

    architecture = "bagging"

    @property
    def decoder(self) -> Float[Tensor, "F D"]:
        """The members' feature directions, divided by the number of members."""
        return super().decoder / len(self.members)

    @property
    def bias(self) -> Float[Tensor, " D"]:
        """The mean of the members' biases."""
        return super().bias / len(self.members)

    def gradient(self, feature: int) -> Float[Tensor, " D"] | None:
        """The gradient of the feature in its member."""
        member = int((self._offsets <= feature).sum()) - 1
        return self.members[member].gradient(feature - int(self._offsets[member]))

    def encode(self, vectors: Float[Tensor, "N D"]) -> Codes:
        """Site vectors -> `Codes`; every member encodes the vectors."""
        return self._joined([member.encode(vectors) for member in self.members])


class Boosting(Ensemble):
    """Each member is trained on the residual of the members before; reconstructions add up."""

    architecture = "boosting"

    def encode(self, vectors: Float[Tensor, "N D"]) -> Codes:
        """Site vectors -> `Codes`; every member encodes the residual of the members before."""
        residual, codes = vectors.float(), []
        for member in self.members:
            codes.append(member.encode(residual))
            residual = residual - member.decode(codes[-1])
        return self._joined(codes)


ENSEMBLES: dict[str, type[Ensemble]] = {kind.architecture: kind for kind in (Bagging, Boosting)}
"""{name in manifests: class}. `TrainConfig.ensemble` chooses one. An ensemble is not an
architecture: its members are dictionaries of any architecture."""


def residual_after(
    members: Sequence[Dictionary], vectors: Float[Tensor, "N D"]
) -> Float[Tensor, "N D"]:
    """The residual of site vectors after the reconstructions of boosting ``members``."""
    residual = vectors.float()
    for member in members:
        there = resident(member, residual.device)
        residual = residual - there.decode(there.encode(residual))
    return residual

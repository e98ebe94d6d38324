"""What the dictionaries that are not autoencoders share: directions (atoms) and a bias."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from torch import Tensor

from vision_sae.dictionaries.kernels import bag
from vision_sae.dictionaries.protocol import Codes, join, to_codes
from vision_sae.dictionaries.weights import WEIGHTS, read_tensors, write_tensors
from vision_sae.errors import CorruptArtifactError, InvalidInputError

_ENCODE_ROWS = 4096
"""Rows encoded at a time: bounds the dense activations."""


def strongest(activations: Tensor, k: int | None) -> Codes:
    """The positive ones of dense activations (N, F), of each row the ``k`` largest at most."""
    if k is None or k >= activations.shape[1]:
        return to_codes(activations)
    values, features = activations.topk(k, dim=1)
    return to_codes(activations.new_zeros(activations.shape).scatter_(1, features, values))


class Atoms:
    """``x_hat = f W_dec + b_dec``, and an ``encode`` that each architecture defines for itself.

    The rows of W_dec have unit norm (those of features that can never fire are zero), so that
    activations are in the units of the site vectors. An architecture gives `encode_rows` and,
    where it has any, further `tensors`, which are also its constructor's keywords.
    """

    architecture: str

    def __init__(self, *, w_dec: Tensor, b_dec: Tensor, k: int | None = None) -> None:
        """Take ``w_dec`` (F, D), ``b_dec`` (D), and the most features that fire in a row."""
        if k is not None and k < 1:
            raise InvalidInputError(
                f"k is {k}; a code needs at least one feature, or none given to keep all", field="k"
            )
        self.w_dec, self.b_dec, self.k = w_dec.contiguous(), b_dec, k

    @property
    def dim(self) -> int:
        """Length D of a site vector."""
        return self.w_dec.shape[1]

    @property
    def width(self) -> int:
        """Number F of features."""
        return self.w_dec.shape[0]

    @property
    def decoder(self) -> Tensor:
        """Feature directions W_dec (F, D)."""
        return self.w_dec

    @property
    def bias(self) -> Tensor:
        """What the zero code decodes to, b_dec (D)."""
        return self.b_dec

    def settings(self) -> dict[str, Any]:
        """The k."""
        return {"k": self.k}

    def tensors(self) -> dict[str, Tensor]:
        """What else the weights file holds."""
        return {}

    def encode_rows(self, vectors: Tensor) -> Codes:
        """A few site vectors (N, D), float32 -> `Codes`."""
        raise TypeError(f"{type(self).__name__} is not an architecture: it lacks `encode_rows`")

    def encode(self, vectors: Tensor) -> Codes:
        """Site vectors (N, D) -> `Codes`; a row's code does not depend on the other rows."""
        return join([self.encode_rows(rows.float()) for rows in vectors.split(_ENCODE_ROWS)])

    def decode(self, codes: Codes) -> Tensor:
        """`Codes` of N vectors -> reconstructions (N, D)."""
        return bag(codes.indices, codes.values, self.w_dec) + self.b_dec

    def slope(self, feature: int) -> Tensor | None:
        """None: activations are solved for together."""
        return None

    def save(self, directory: Path) -> dict[str, Any]:
        """Write W_dec (F, D), b_dec (D) and the further tensors."""
        weights = {"W_dec": self.w_dec, "b_dec": self.b_dec}
        write_tensors(directory, weights | self.tensors())
        return {
            "architecture": self.architecture,
            "dim": self.dim,
            "width": self.width,
            **self.settings(),
        }

    @classmethod
    def load(cls, directory: Path, config: dict[str, Any]) -> Self:
        """Read what `save` wrote; raises `CorruptArtifactError` when shapes disagree."""
        tensors = read_tensors(directory)
        w_dec, b_dec = tensors.pop("W_dec"), tensors.pop("b_dec")
        known = {"architecture", "dim", "width"}
        further: dict[str, Any] = {k: v for k, v in config.items() if k not in known} | tensors
        atoms = cls(w_dec=w_dec, b_dec=b_dec, **further)
        shape = (config["width"], config["dim"])
        if atoms.w_dec.shape != shape:
            raise CorruptArtifactError(
                f"{directory / WEIGHTS} holds shapes {tuple(atoms.w_dec.shape)}, its manifest says "
                f"{shape}; train again"
            )
        return atoms

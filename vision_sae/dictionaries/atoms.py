"""The base of dictionaries that are not autoencoders: directions (atoms) and a bias."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from vision_sae.dictionaries.kernels import bag
from vision_sae.dictionaries.protocol import Codes, join, to_codes
from vision_sae.dictionaries.weights import WEIGHTS, read_tensors, write_tensors
from vision_sae.errors import CorruptArtifactError, InvalidInputError

_ENCODE_ROWS = 4096
"""Rows encoded at a time, which bounds the memory of the dense activations."""


def strongest(activations: Float[Tensor, "N F"], k: int | None) -> Codes:
    """The ``k`` largest positive activations of each row, or all positive ones without a ``k``."""
    if k is None or k >= activations.shape[1]:
        return to_codes(activations)
    values, features = activations.topk(k, dim=1)
    return to_codes(activations.new_zeros(activations.shape).scatter_(1, features, values))


class Atoms:
    """``x_hat = f W_dec + b_dec``, with an encoder that each subclass defines.

    The rows of W_dec have unit norm, so that activations are in the units of the site vectors; the
    row of a feature that can never fire is zero. A subclass defines `encode_rows`. A subclass with
    further tensors returns them from `tensors`; their names are also keywords of its constructor.
    """

    architecture: str

    def __init__(
        self, *, w_dec: Float[Tensor, "F D"], b_dec: Float[Tensor, " D"], k: int | None = None
    ) -> None:
        """Take the weights, and the largest number ``k`` of features that fire in a row.

        Raises `InvalidInputError` for a ``k`` below 1.
        """
        if k is not None and k < 1:
            raise InvalidInputError(
                f"k is {k}; give at least one feature, or no k to keep all", field="k"
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
    def decoder(self) -> Float[Tensor, "F D"]:
        """Feature directions W_dec."""
        return self.w_dec

    @property
    def bias(self) -> Float[Tensor, " D"]:
        """The reconstruction b_dec of a code without active features."""
        return self.b_dec

    def settings(self) -> dict[str, Any]:
        """``k``, None for all features."""
        return {"k": self.k}

    def tensors(self) -> dict[str, Tensor]:
        """Further tensors of the weights file, beside those of this class."""
        return {}

    def encode_rows(self, vectors: Float[Tensor, "N D"]) -> Codes:
        """Site vectors of one block, float32 -> `Codes`."""
        raise TypeError(f"{type(self).__name__} is not an architecture: it lacks `encode_rows`")

    def encode(self, vectors: Float[Tensor, "N D"]) -> Codes:
        """Site vectors -> `Codes`; a row's code does not depend on the other rows."""
        return join([self.encode_rows(rows.float()) for rows in vectors.split(_ENCODE_ROWS)])

    def decode(self, codes: Codes) -> Float[Tensor, "N D"]:
        """`Codes` of N vectors -> reconstructions."""
        return bag(codes.indices, codes.values, self.w_dec) + self.b_dec

    def gradient(self, feature: int) -> Float[Tensor, " D"] | None:
        """None: the activations of a row depend on each other."""
        return None

    def to(self, device: torch.device) -> Self:
        """See `Dictionary.to`."""
        weights = {"w_dec": self.w_dec, "b_dec": self.b_dec} | self.tensors()
        moved: dict[str, Any] = {name: t.to(device) for name, t in weights.items()}
        return type(self)(**moved, **self.settings())

    def save(self, directory: Path) -> dict[str, Any]:
        """Write W_dec (F, D), b_dec (D) and the further tensors. Returns the manifest entries."""
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

"""The base of all sparse autoencoders: an encoder matrix, a decoder matrix, and two biases."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vision_sae.dictionaries.kernels import bag
from vision_sae.dictionaries.protocol import Codes, join
from vision_sae.dictionaries.weights import WEIGHTS, read_tensors, write_tensors
from vision_sae.errors import CorruptArtifactError

_ENCODE_ROWS = 4096
"""Rows encoded at a time, which bounds the memory of the dense pre-activations."""


class Sae:
    """``f = activate((x - b_dec) W_enc + b_enc)``, ``x_hat = f W_dec + b_dec``.

    A subclass defines `activate`. A subclass with further settings (JSON) or tensors returns them
    from `settings` and `tensors`; their names are also keywords of its constructor.
    """

    architecture: str

    def __init__(
        self,
        *,
        w_enc: Float[Tensor, "F D"],
        b_enc: Float[Tensor, " F"],
        w_dec: Float[Tensor, "F D"],
        b_dec: Float[Tensor, " D"],
    ) -> None:
        """Take the weights; each row of ``w_enc`` is the encoder direction of one feature."""
        self.w_enc, self.b_enc, self.w_dec, self.b_dec = w_enc, b_enc, w_dec, b_dec

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
        """Further manifest entries that loading these weights needs."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """Further tensors of the weights file, beside those of this class."""
        return {}

    def activate(self, pre_activations: Float[Tensor, "N F"]) -> Codes:
        """Pre-activations -> `Codes`."""
        raise TypeError(f"{type(self).__name__} is not an architecture: it lacks `activate`")

    def pre_activations(self, vectors: Float[Tensor, "N D"]) -> Float[Tensor, "N F"]:
        """``(x - b_dec) W_enc + b_enc`` of site vectors x, in float32."""
        return F.linear(vectors.float() - self.b_dec, self.w_enc, self.b_enc)

    def encode(self, vectors: Float[Tensor, "N D"]) -> Codes:
        """Site vectors -> `Codes`."""
        return join(
            [self.activate(self.pre_activations(rows)) for rows in vectors.split(_ENCODE_ROWS)]
        )

    def decode(self, codes: Codes) -> Float[Tensor, "N D"]:
        """`Codes` of N vectors -> reconstructions."""
        return bag(codes.indices, codes.values, self.w_dec) + self.b_dec

    def gradient(self, feature: int) -> Float[Tensor, " D"] | None:
        """The encoder direction of a feature."""
        return self.w_enc[feature]

    def to(self, device: torch.device) -> Self:
        """See `Dictionary.to`."""
        weights = {
            "w_enc": self.w_enc,
            "b_enc": self.b_enc,
            "w_dec": self.w_dec,
            "b_dec": self.b_dec,
        }
        moved = {name: t.to(device) for name, t in (weights | self.tensors()).items()}
        return type(self)(**moved, **self.settings())

    def save(self, directory: Path) -> dict[str, Any]:
        """Write the weights in the canonical orientation: W_enc (D, F), W_dec (F, D)."""
        weights = {
            "W_enc": self.w_enc.T,
            "b_enc": self.b_enc,
            "W_dec": self.w_dec,
            "b_dec": self.b_dec,
        }
        write_tensors(directory, weights | self.tensors())
        return {
            "architecture": self.architecture,
            "dim": self.dim,
            "width": self.width,
            "subtract_b_dec": True,
            **self.settings(),
        }

    @classmethod
    def load(cls, directory: Path, config: dict[str, Any]) -> Self:
        """Read what `save` wrote; raises `CorruptArtifactError` when shapes disagree."""
        tensors = read_tensors(directory)
        known = {"architecture", "dim", "width", "subtract_b_dec"}
        sae = cls(
            w_enc=tensors.pop("W_enc").T.contiguous(),
            b_enc=tensors.pop("b_enc"),
            w_dec=tensors.pop("W_dec"),
            b_dec=tensors.pop("b_dec"),
            **tensors,
            **{key: value for key, value in config.items() if key not in known},
        )
        shape = (config["width"], config["dim"])
        if sae.w_enc.shape != shape or sae.w_dec.shape != shape:
            raise CorruptArtifactError(
                f"{directory / WEIGHTS} holds shapes {tuple(sae.w_dec.shape)}, its manifest says "
                f"{shape}; train again"
            )
        return sae

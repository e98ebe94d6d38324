"""What all sparse autoencoders share: an encoder matrix, a decoder matrix, and two biases."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import torch.nn.functional as F
from torch import Tensor

from vision_sae.dictionaries.kernels import bag
from vision_sae.dictionaries.protocol import Codes, join
from vision_sae.dictionaries.weights import WEIGHTS, read_tensors, write_tensors
from vision_sae.errors import CorruptArtifactError

_ENCODE_ROWS = 4096
"""Rows encoded at a time: bounds the dense pre-activations."""


class Sae:
    """``f = activate((x - b_dec) W_enc + b_enc)``, ``x_hat = f W_dec + b_dec``.

    An architecture gives `activate` and, where it has any, its `settings` (JSON) and its further
    `tensors`, which are also its constructor's keywords.
    """

    architecture: str

    def __init__(self, *, w_enc: Tensor, b_enc: Tensor, w_dec: Tensor, b_dec: Tensor) -> None:
        """Take ``w_enc`` (F, D), one encoder direction a row; ``w_dec`` (F, D); and biases."""
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
    def decoder(self) -> Tensor:
        """Feature directions W_dec (F, D)."""
        return self.w_dec

    @property
    def bias(self) -> Tensor:
        """What the zero code decodes to, b_dec (D)."""
        return self.b_dec

    def settings(self) -> dict[str, Any]:
        """What else the manifest must say to load these weights."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """What else the weights file holds."""
        return {}

    def activate(self, pre_activations: Tensor) -> Codes:
        """Pre-activations (N, F) -> `Codes`."""
        raise TypeError(f"{type(self).__name__} is not an architecture: it lacks `activate`")

    def pre_activations(self, vectors: Tensor) -> Tensor:
        """``(x - b_dec) W_enc + b_enc`` of site vectors (N, D) -> (N, F), float32."""
        return F.linear(vectors.float() - self.b_dec, self.w_enc, self.b_enc)

    def encode(self, vectors: Tensor) -> Codes:
        """Site vectors (N, D) -> `Codes`."""
        return join(
            [self.activate(self.pre_activations(rows)) for rows in vectors.split(_ENCODE_ROWS)]
        )

    def decode(self, codes: Codes) -> Tensor:
        """`Codes` of N vectors -> reconstructions (N, D)."""
        return bag(codes.indices, codes.values, self.w_dec) + self.b_dec

    def slope(self, feature: int) -> Tensor | None:
        """The encoder direction of a feature (D)."""
        return self.w_enc[feature]

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

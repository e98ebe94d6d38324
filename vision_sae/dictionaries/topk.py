"""TopK sparse autoencoder (Gao et al. 2024, "Scaling and evaluating sparse autoencoders")."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from vision_sae.dictionaries.kernels import bag, top_k
from vision_sae.dictionaries.protocol import Codes
from vision_sae.errors import CorruptArtifactError

WEIGHTS = "weights.safetensors"
_ENCODE_ROWS = 4096
"""Rows encoded at a time: bounds the dense pre-activations."""


class TopKSae:
    """``f = TopK(relu((x - b_dec) W_enc + b_enc))``, ``x_hat = f W_dec + b_dec``.

    Decoder rows have unit norm, so activations are in the units of the site vectors.
    """

    architecture = "topk"

    def __init__(
        self, *, w_enc: Tensor, b_enc: Tensor, w_dec: Tensor, b_dec: Tensor, k: int
    ) -> None:
        """Take ``w_enc`` (F, D), one encoder direction a row; ``w_dec`` (F, D); biases; and k."""
        self.w_enc, self.b_enc, self.w_dec, self.b_dec = w_enc, b_enc, w_dec, b_dec
        self.k = k

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

    def encode(self, vectors: Tensor) -> Codes:
        """Site vectors (N, D) -> `Codes` with k entries a row."""
        parts = [
            top_k(F.linear(rows.float() - self.b_dec, self.w_enc, self.b_enc).relu_(), self.k)
            for rows in vectors.split(_ENCODE_ROWS)
        ]
        return Codes(torch.cat([i for i, _ in parts]), torch.cat([v for _, v in parts]))

    def decode(self, codes: Codes) -> Tensor:
        """`Codes` of N vectors -> reconstructions (N, D)."""
        return bag(codes.indices, codes.values, self.w_dec) + self.b_dec

    def save(self, directory: Path) -> dict[str, Any]:
        """Write the weights in the canonical orientation: W_enc (D, F), W_dec (F, D)."""
        tensors = {
            "W_enc": self.w_enc.T.contiguous(),
            "b_enc": self.b_enc,
            "W_dec": self.w_dec.contiguous(),
            "b_dec": self.b_dec,
        }
        save_file(tensors, directory / WEIGHTS)
        return {
            "architecture": self.architecture,
            "dim": self.dim,
            "width": self.width,
            "k": self.k,
            "subtract_b_dec": True,
        }

    @classmethod
    def load(cls, directory: Path, config: dict[str, Any]) -> TopKSae:
        """Read what `save` wrote; raises `CorruptArtifactError` when shapes disagree."""
        tensors = load_file(directory / WEIGHTS)
        sae = cls(
            w_enc=tensors["W_enc"].T.contiguous(),
            b_enc=tensors["b_enc"],
            w_dec=tensors["W_dec"],
            b_dec=tensors["b_dec"],
            k=config["k"],
        )
        shape = (config["width"], config["dim"])
        if sae.w_enc.shape != shape or sae.w_dec.shape != shape:
            raise CorruptArtifactError(
                f"{directory / WEIGHTS} holds shapes {tuple(sae.w_dec.shape)}, its manifest says "
                f"{shape}; train again"
            )
        return sae

"""Gated sparse autoencoder: what fires and how much are told apart (Rajamanoharan et al. 2024)."""

from __future__ import annotations

from torch import Tensor

from vision_sae.dictionaries.protocol import Codes, to_codes
from vision_sae.dictionaries.sae import Sae


class GatedSae(Sae):
    """A feature fires where its gate's pre-activation is positive (``b_enc`` is the gate's bias),
    with the value ``relu(exp(r_mag) * (x - b_dec) W_enc + b_mag)``."""

    architecture = "gated"

    def __init__(self, *, r_mag: Tensor, b_mag: Tensor, **weights: Tensor) -> None:
        """Take the weights of `Sae`; ``r_mag`` (F), log of the rescaling, and ``b_mag`` (F)."""
        super().__init__(**weights)
        self.r_mag, self.b_mag = r_mag, b_mag

    def tensors(self) -> dict[str, Tensor]:
        """The magnitude path."""
        return {"r_mag": self.r_mag, "b_mag": self.b_mag}

    def slope(self, feature: int) -> Tensor | None:
        """The encoder direction of a feature as its magnitude sees it (D)."""
        return self.w_enc[feature] * self.r_mag[feature].exp()

    def activate(self, pre_activations: Tensor) -> Codes:
        """The gate's pre-activations (N, F) -> `Codes`."""
        magnitude = (pre_activations - self.b_enc) * self.r_mag.exp() + self.b_mag
        return to_codes(magnitude * (pre_activations > 0))

"""`sparse.Kernels` in Triton, for CUDA GPUs (not yet run on a GPU; ``pytest tests/gpu`` would).

The structure is that of `sparse_torch`, which is the reference and the fallback. The dense product
that chooses the features is torch's, in row chunks; what follows is in `kernels_triton` and
`kernels_triton_update`. Gradients and weights are float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vision_sae.dictionaries.kernels_triton import bag, choose_largest, dots
from vision_sae.dictionaries.kernels_triton_update import (
    AdamNumbers,
    AuxRows,
    Firings,
    Parameters,
    update_rows,
)
from vision_sae.dictionaries.training.aux_k import AuxGradients
from vision_sae.dictionaries.training.sparse import BETAS, EPSILON, Adam, Chosen, Forward, Weights
from vision_sae.dictionaries.training.sparse_torch import TorchKernels, gradients_of, group_of


class TritonKernels(TorchKernels):
    """The costly operations of a training step, in Triton."""

    def __init__(self, weights: Weights, *, dtype: torch.dtype | None = None) -> None:
        """``dtype`` is the precision of the choosing product; by default the fastest."""
        super().__init__(weights, dtype=dtype)
        low = self._dtype != torch.float32
        self._low = weights.w_enc.to(self._dtype) if low else None

    def refresh(self) -> None:
        """Update the copy of the encoder, after a change of the weights from outside."""
        if self._low is not None:
            self._low.copy_(self._w.w_enc)

    def _directions(self) -> Tensor:
        """The encoder in the precision of the choosing product (F, D)."""
        return self._w.w_enc if self._low is None else self._low

    def _largest(self, pre_activations: Tensor, slots: int) -> tuple[Tensor, Tensor]:
        """See `TorchKernels`."""
        features, values, _ = choose_largest(pre_activations, slots)
        return features, values

    def _activations(self, centred: Tensor, features: Tensor, counts: Tensor) -> Tensor:
        """See `TorchKernels`."""
        values = torch.zeros(features.shape, device=centred.device)
        every = (0, len(self._w.w_enc))
        dots(features, counts, centred, self._w.w_enc, values, between=every, bias=self._w.b_enc)
        return values

    def finish(self, chosen: Chosen, ends: tuple[int, ...], weight: float) -> Forward:
        """See `sparse.Kernels`."""
        w, (centred, features, counts, values) = self._w, chosen
        g_values = torch.zeros_like(values)
        groups = tuple(zip((0, *ends[:-1]), ends, strict=True))
        parts = [bag(features, counts, values, w.w_dec, between=group) for group in groups]
        errors = torch.stack(parts).cumsum(0) - centred
        output_gradients = gradients_of(errors, weight)
        for group, gradient in zip(groups, output_gradients, strict=True):
            dots(features, counts, gradient, w.w_dec, g_values, between=group, active=values)
        return Forward(
            *chosen,
            error=errors[-1],
            output_gradients=output_gradients,
            g_values=g_values,
        )

    def gradients_at(self, forward: Forward, output_gradients: Tensor) -> Forward:
        """See `sparse.Kernels`."""
        w, g_values = self._w, torch.zeros_like(forward.values)
        dots(
            forward.features, forward.counts, output_gradients[0], w.w_dec, g_values,
            between=(0, len(w.w_dec)), active=forward.values,
        )  # fmt: skip
        return forward._replace(output_gradients=output_gradients, g_values=g_values)

    def update(
        self,
        forward: Forward,
        ends: tuple[int, ...],
        adam: Adam,
        aux: AuxGradients | None,
        decoder_gradient: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """See `sparse.Kernels`."""
        w = self._w
        firings = _firings(forward, ends, len(w.w_enc))
        through_encoder = update_rows(
            firings,
            None if aux is None else _aux_rows(aux, len(w.w_enc)),
            None if decoder_gradient is None else decoder_gradient.contiguous(),
            Parameters(*(getattr(w, name) for name in Parameters._fields)),
            self._low,
            AdamNumbers(adam.rate, adam.unbias, *BETAS, EPSILON),
        )
        return firings.starts[1:] > firings.starts[:-1], through_encoder


def _firings(forward: Forward, ends: tuple[int, ...], width: int) -> Firings:
    """The slots with positive values, sorted by feature; all others are sorted behind them."""
    features = torch.where(forward.values > 0, forward.features, width).reshape(-1)
    ordered, slots = features.sort(stable=True)
    numbers = torch.arange(width + 1, dtype=torch.int32, device=features.device)
    return Firings(
        starts=torch.searchsorted(ordered, numbers),
        slots=slots,
        values=forward.values.contiguous(),
        g_values=forward.g_values.contiguous(),
        output_gradients=forward.output_gradients.contiguous(),
        groups=group_of(numbers[:width], ends).int(),
        centred=forward.centred.contiguous(),
    )


def _aux_rows(aux: AuxGradients, width: int) -> AuxRows:
    """The gradients of AuxK, and the row of each feature among them."""
    count, device = len(aux.features), aux.features.device
    rows = torch.full((width,), -1, dtype=torch.int32, device=device)
    rows[aux.features] = torch.arange(count, dtype=torch.int32, device=device)
    return AuxRows(rows, *(t.contiguous() for t in (aux.w_enc, aux.b_enc, aux.w_dec)))

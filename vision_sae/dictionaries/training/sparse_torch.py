"""`sparse.Kernels` in plain torch operations, for any device (not yet run on a GPU).

The same structure as on the CPU: one dense product that chooses, then sparse products at the
chosen features alone. On the CPU it is the oracle that the compiled loops are tested against.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vision_sae.dictionaries.kernels import bag, sampled_dot, top_k, transpose, transposed_bag
from vision_sae.dictionaries.training.aux_k import AuxGradients
from vision_sae.dictionaries.training.sparse import (
    WIDEST_ROW,
    Adam,
    Chosen,
    Forward,
    Shared,
    Totals,
    Weights,
    adam_,
)
from vision_sae.models.precision import fastest_dtype


class TorchKernels:
    """The heavy part of a training step, as torch operations."""

    def __init__(self, weights: Weights, *, dtype: torch.dtype | None = None) -> None:
        self._w = weights
        self._dtype = dtype or fastest_dtype(str(weights.w_enc.device))

    def refresh(self) -> None:
        """Nothing is remembered between steps."""

    def choose(self, z: Tensor, k: int, shared: Shared | None) -> Chosen:
        """See `sparse.Kernels`."""
        w, dtype = self._w, self._dtype
        centred = z - w.b_dec
        pre = F.linear(centred.to(dtype), w.w_enc.to(dtype), w.b_enc.to(dtype))
        slots = min(len(w.w_enc), WIDEST_ROW * k) if shared else k
        indices, values = top_k(pre, slots)
        positive = values > 0
        if shared:
            rivals = shared.group.gather(values, shared.rows)
            rivals, places = rivals[rivals > 0], k * shared.rows
            if len(rivals) > places:
                positive &= values >= rivals.topk(places).values[-1]
        # Those that fire move to the front of their row and stay in order.
        order = (~positive).sort(dim=1, stable=True).indices
        return Chosen(centred, indices.gather(1, order).int(), positive.sum(1).int())

    def finish(self, chosen: Chosen, ends: tuple[int, ...], weight: float) -> Forward:
        """See `sparse.Kernels`."""
        w, centred, indices = self._w, chosen.centred, chosen.features.long()
        taken = torch.arange(indices.shape[1], device=indices.device) < chosen.counts[:, None]
        values = _dots(indices, centred, w.w_enc) + w.b_enc[indices]
        values = values.relu() * taken
        errors = torch.stack(
            [bag(indices, values * (indices < end), w.w_dec) - centred for end in ends]
        )
        slopes = (errors * weight).flip(0).cumsum(0).flip(0)
        group = torch.bucketize(indices, torch.tensor(ends, device=indices.device), right=True)
        g_values = torch.zeros_like(values)
        for number, slope in enumerate(slopes):
            inside = (group == number) & (values > 0)
            g_values += _dots(indices, slope, w.w_dec) * inside
        return Forward(
            *chosen,
            values=values,
            error=errors[-1],
            slopes=slopes,
            g_values=g_values,
        )

    def gradients_at(self, forward: Forward, slopes: Tensor) -> Forward:
        """See `sparse.Kernels`."""
        g_values = _dots(forward.features.long(), slopes[0], self._w.w_dec) * (forward.values > 0)
        return forward._replace(slopes=slopes, g_values=g_values)

    def totals(self, forward: Forward) -> Totals:
        """See `sparse.Kernels`."""
        centred = forward.centred
        return Totals(
            slope=forward.slopes[0].sum(0),
            squares=forward.error.square().sum(),
            spread=(centred - centred.mean(0)).square().sum(),
            active=(forward.values > 0).sum(),
        )

    def update(
        self,
        forward: Forward,
        ends: tuple[int, ...],
        adam: Adam,
        aux: AuxGradients | None,
        decoder_gradient: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """See `sparse.Kernels`."""
        w, width = self._w, len(self._w.w_enc)
        indices = forward.features.long()
        by_feature = transpose(indices, width)
        group = torch.bucketize(indices, torch.tensor(ends, device=indices.device), right=True)
        g_w_dec = sum(
            (
                transposed_bag(by_feature, forward.values * (group == number), slope)
                for number, slope in enumerate(forward.slopes)
            ),
            start=torch.zeros_like(w.w_dec),
        )
        g_w_enc = transposed_bag(by_feature, forward.g_values, forward.centred)
        g_b_enc = torch.zeros_like(w.b_enc).index_add_(
            0, indices.reshape(-1), forward.g_values.reshape(-1)
        )
        if aux is not None:
            g_w_enc.index_add_(0, aux.features, aux.w_enc)
            g_b_enc.index_add_(0, aux.features, aux.b_enc)
            g_w_dec.index_add_(0, aux.features, aux.w_dec)
        if decoder_gradient is not None:
            g_w_dec = g_w_dec + decoder_gradient
        through_encoder = g_b_enc @ w.w_enc
        radial = (g_w_dec * w.w_dec).sum(1, keepdim=True)
        g_w_dec = g_w_dec.addcmul(radial, w.w_dec, value=-1)
        adam_(w.w_enc, g_w_enc, w.m_w_enc, w.v_w_enc, adam)
        adam_(w.b_enc, g_b_enc, w.m_b_enc, w.v_b_enc, adam)
        adam_(w.w_dec, g_w_dec, w.m_w_dec, w.v_w_dec, adam)
        w.w_dec.div_(w.w_dec.norm(dim=1, keepdim=True))
        fired = torch.zeros(width, dtype=torch.bool, device=indices.device)
        fired[indices[forward.values > 0]] = True
        return fired, through_encoder


def _dots(indices: Tensor, a: Tensor, rows: Tensor) -> Tensor:
    """`sampled_dot` for indices that ascend only among the slots taken."""
    ordered, order = indices.sort(dim=1)
    return torch.empty_like(a[:, :1].expand(indices.shape)).scatter(
        1, order, sampled_dot(ordered, a, rows)
    )

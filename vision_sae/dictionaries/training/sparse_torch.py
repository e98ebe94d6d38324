"""`sparse.Kernels` in plain torch operations, for any device (not yet run on a GPU).

The structure is the same as in `sparse_cpu`: one dense product chooses the features, then sparse
products use the chosen features alone. Tests compare the compiled loops with this module.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vision_sae.dictionaries.kernels import (
    add_rows_,
    bag,
    fired_features,
    sampled_dot,
    top_k,
    transpose,
    transposed_bag,
)
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
from vision_sae.models.precision import training_dtype

_CHUNK_BYTES = 32 * 2**20
"""Bytes of the pre-activations of a chunk of rows: they fit in a large GPU's second-level cache."""


class TorchKernels:
    """The costly operations of a training step, in torch; none waits for the device."""

    def __init__(self, weights: Weights, *, dtype: torch.dtype | None = None) -> None:
        """``dtype`` is the precision of the choosing product; by default the fastest."""
        self._w = weights
        self._dtype = dtype or training_dtype(weights.w_enc.device)

    def refresh(self) -> None:
        """Do nothing: there are no copies of the weights."""

    def choose(self, z: Tensor, k: int, shared: Shared | None) -> Chosen:
        """See `sparse.Kernels`."""
        centred, width = z - self._w.b_dec, len(self._w.w_enc)
        slots = min(width, WIDEST_ROW * k) if shared else k
        directions, bias = self._directions(), self._w.b_enc.to(self._dtype)
        size = max(1, _CHUNK_BYTES // (width * self._dtype.itemsize))
        parts = [
            self._largest(F.linear(rows.to(self._dtype), directions, bias), slots)
            for rows in centred.split(size)
        ]
        features, values = (torch.cat(part) for part in zip(*parts, strict=True))
        positive = values > 0
        if shared:
            positive &= values >= _least_of_batch(values, k, shared)
            features = _in_front(features, positive)
        counts = positive.sum(1).int()
        return Chosen(centred, features, counts, self._activations(centred, features, counts))

    def _activations(self, centred: Tensor, features: Tensor, counts: Tensor) -> Tensor:
        """The activations of the chosen features in float32 (N, K); 0 in unused slots."""
        indices = features.long()
        taken = torch.arange(indices.shape[1], device=indices.device) < counts[:, None]
        values = _dots(indices, centred, self._w.w_enc) + self._w.b_enc[indices]
        return values.relu() * taken

    def _directions(self) -> Tensor:
        """The encoder in the precision of the choosing product (F, D)."""
        return self._w.w_enc.to(self._dtype)

    def _largest(self, pre_activations: Tensor, slots: int) -> tuple[Tensor, Tensor]:
        """(features int32, pre-activations) of the ``slots`` largest of each row.

        The positive ones stand in front, their features ascend, and all others are at most 0.
        """
        indices, values = top_k(pre_activations, slots)
        positive = values > 0
        return _in_front(indices.int(), positive), _in_front(values, positive)

    def finish(self, chosen: Chosen, ends: tuple[int, ...], weight: float) -> Forward:
        """See `sparse.Kernels`."""
        w, (centred, _, _, values), indices = self._w, chosen, chosen.features.long()
        errors = torch.stack(
            [bag(indices, values * (indices < end), w.w_dec) - centred for end in ends]
        )
        output_gradients = gradients_of(errors, weight)
        group = group_of(indices, ends)
        g_values = torch.zeros_like(values)
        for number, output_gradient in enumerate(output_gradients):
            inside = (group == number) & (values > 0)
            g_values += _dots(indices, output_gradient, w.w_dec) * inside
        return Forward(
            *chosen,
            error=errors[-1],
            output_gradients=output_gradients,
            g_values=g_values,
        )

    def gradients_at(self, forward: Forward, output_gradients: Tensor) -> Forward:
        """See `sparse.Kernels`."""
        g_values = _dots(forward.features.long(), output_gradients[0], self._w.w_dec) * (
            forward.values > 0
        )
        return forward._replace(output_gradients=output_gradients, g_values=g_values)

    def totals(self, forward: Forward) -> Totals:
        """See `sparse.Kernels`."""
        centred = forward.centred
        return Totals(
            output_gradient=forward.output_gradients[0].sum(0),
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
        group = group_of(indices, ends)
        g_w_dec = sum(
            (
                transposed_bag(by_feature, forward.values * (group == number), output_gradient)
                for number, output_gradient in enumerate(forward.output_gradients)
            ),
            start=torch.zeros_like(w.w_dec),
        )
        g_w_enc = transposed_bag(by_feature, forward.g_values, forward.centred)
        g_b_enc = torch.zeros_like(w.b_enc)
        add_rows_(g_b_enc, indices.reshape(-1), forward.g_values.reshape(-1))
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
        return fired_features(indices, forward.values, width), through_encoder


def gradients_of(errors: Tensor, weight: float) -> Tensor:
    """Gradients (G, N, D) by the output of each nested group's features: those features are part of
    their own prefix and of all longer prefixes, whose errors are ``errors`` (G, N, D)."""
    return (errors * weight).flip(0).cumsum(0).flip(0)


def group_of(features: Tensor, ends: tuple[int, ...]) -> Tensor:
    """The number of the nested group that each feature is in, int64, where ``ends`` end prefixes.

    Comparisons with numbers need no copy of ``ends`` on the device.
    """
    return sum((features >= end for end in ends[:-1]), start=torch.zeros_like(features).long())


def _in_front(numbers: Tensor, first: Tensor) -> Tensor:
    """Each row of ``numbers`` with the marked ones in front, in their order."""
    return numbers.gather(1, (~first).sort(dim=1, stable=True).indices)


def _least_of_batch(values: Tensor, k: int, shared: Shared) -> Tensor:
    """The smallest of the k * rows largest ``values`` (N, K) of the whole batch, or 0, ()."""
    candidates = shared.group.gather(values, shared.rows).relu().flatten()
    return candidates.topk(k * shared.rows, sorted=False).values.min()


def _dots(indices: Tensor, a: Tensor, rows: Tensor) -> Tensor:
    """`sampled_dot` for indices that ascend only among the slots in use."""
    if indices.device.type != "cpu":
        return sampled_dot(indices, a, rows)
    ordered, order = indices.sort(dim=1)
    return torch.empty_like(a[:, :1].expand(indices.shape)).scatter(
        1, order, sampled_dot(ordered, a, rows)
    )

"""`sparse.Kernels` on a CPU: compiled loops, one lane a core.

Whatever touches every row runs in the lanes. An operation of torch's own on many rows would leave
its threads waiting busily for the next one, on the cores that the lanes need.
"""

from __future__ import annotations

import threading

import numpy as np
import torch
from torch import Tensor

from vision_sae.dictionaries import kernels_cpu as loops
from vision_sae.dictionaries.training.aux_k import AuxGradients
from vision_sae.dictionaries.training.sparse import (
    BETAS,
    EPSILON,
    WIDEST_ROW,
    Adam,
    Chosen,
    Forward,
    Shared,
    Totals,
    Weights,
)
from vision_sae.models.precision import fastest_dtype

_CHUNK_BYTES = 3 * 2**20
"""Pre-activations of a chunk of rows: what a core has just computed should still be near it."""
_FEATURES = 128
"""Features that are updated together."""
_ROWS = 512
"""Rows that are summed together, and the most in a chunk: every lane gets some."""
_INTEGER = {torch.bfloat16: torch.int16, torch.float32: torch.int32}


class CpuKernels:
    """The heavy part of a training step on this machine's cores."""

    def __init__(self, weights: Weights, *, dtype: torch.dtype | None = None) -> None:
        """``dtype`` is the precision of the product that chooses; the fastest when absent."""
        self._w = weights
        self._dtype = dtype or fastest_dtype()
        low = self._dtype == torch.bfloat16
        self._low = weights.w_enc.to(torch.bfloat16) if low else weights.w_enc[:0].bfloat16()
        self._scratch = threading.local()

    def refresh(self) -> None:
        """Take notice of weights that were changed from outside."""
        if len(self._low):
            self._low.copy_(self._w.w_enc)

    def _chunk(self, rows: int) -> Tensor:
        """This lane's buffer for the pre-activations of a chunk (rows, F)."""
        width = len(self._w.w_enc)
        buffer: Tensor | None = getattr(self._scratch, "buffer", None)
        if buffer is None or len(buffer) < rows:
            buffer = torch.empty(rows, width, dtype=self._dtype)
            self._scratch.buffer = buffer
        return buffer[:rows]

    def choose(self, z: Tensor, k: int, shared: Shared | None) -> Chosen:
        """See `sparse.Kernels`."""
        n, width = len(z), len(self._w.w_enc)
        slots = min(width, WIDEST_ROW * k) if shared else k
        chosen = Chosen(
            torch.empty_like(z),
            torch.zeros(n, slots, dtype=torch.int32),
            torch.zeros(n, dtype=torch.int32),
        )
        centred, features, counts = chosen.centred, chosen.features.numpy(), chosen.counts.numpy()
        kept = np.zeros((n, slots) if shared else (0, 0), dtype=np.int32)
        directions = (self._low if len(self._low) else self._w.w_enc).T
        bias = self._w.b_enc.to(self._dtype)
        size = max(1, min(_ROWS, _CHUNK_BYTES // (width * self._dtype.itemsize)))

        def work(first: int, last: int) -> None:
            for start in range(first, last, size):
                rows = slice(start, min(start + size, last))
                pre = self._chunk(rows.stop - start)
                torch.sub(z[rows], self._w.b_dec, out=centred[rows])
                torch.addmm(bias, centred[rows].to(self._dtype), directions, out=pre)
                bits = pre.view(_INTEGER[self._dtype]).numpy()
                loops.choose_largest(bits, slots, features[rows], counts[rows])
                if shared:
                    loops.take(bits, features[rows], counts[rows], kept[rows])

        loops.current_lanes().run(work, n, grain=size)
        if shared:
            rivals = shared.group.gather(torch.from_numpy(kept), shared.rows).numpy()
            rivals, places = rivals[rivals > 0], k * shared.rows
            if len(rivals) > places:
                bound = np.partition(rivals, len(rivals) - places)[len(rivals) - places]
                loops.keep_above(kept, bound, features, counts)
        return chosen

    def finish(self, chosen: Chosen, ends: tuple[int, ...], weight: float) -> Forward:
        """See `sparse.Kernels`."""
        (n, dim), slots = chosen.centred.shape, chosen.features.shape[1]
        forward = Forward(
            *chosen,
            values=torch.empty(n, slots),
            error=torch.empty(n, dim),
            slopes=torch.empty(len(ends), n, dim),
            g_values=torch.empty(n, slots),
        )
        x, features, counts, values, error, slopes, g_values = (t.numpy() for t in forward)
        w_enc, b_enc, w_dec = (t.numpy() for t in self._w[:3])
        weights = np.full(len(ends), weight, dtype=np.float32)
        groups = np.array(ends, dtype=np.int32)

        def work(first: int, last: int) -> None:
            rows = slice(first, last)
            loops.activate(features[rows], counts[rows], x[rows], w_enc, b_enc, values[rows])
            loops.reconstruct(
                features[rows], counts[rows], values[rows], x[rows], w_dec, groups, weights,
                error[rows], slopes[:, rows], g_values[rows],
            )  # fmt: skip

        loops.current_lanes().run(work, n)
        return forward

    def gradients_at(self, forward: Forward, slopes: Tensor) -> Forward:
        """See `sparse.Kernels`."""
        g_values = torch.empty_like(forward.values)
        loops.dot_rows(
            forward.features.numpy(),
            forward.counts.numpy(),
            slopes[0].contiguous().numpy(),
            self._w.w_dec.numpy(),
            g_values.numpy(),
        )
        g_values.mul_(forward.values > 0)
        return forward._replace(slopes=slopes, g_values=g_values)

    def totals(self, forward: Forward) -> Totals:
        """See `sparse.Kernels`."""
        n, dim = forward.centred.shape
        # Like `update`'s, a sum for every so many rows.
        by_column = np.zeros((-(-n // _ROWS), 2, dim))
        numbers = np.zeros((len(by_column), 3))
        slope, centred = forward.slopes[0].numpy(), forward.centred.numpy()
        error, values = forward.error.numpy(), forward.values.numpy()

        def work(first: int, last: int) -> None:
            for start in range(first, last, _ROWS):
                rows, part = slice(start, min(start + _ROWS, last)), start // _ROWS
                loops.sum_rows(
                    slope[rows], centred[rows], error[rows], values[rows],
                    by_column[part], numbers[part],
                )  # fmt: skip

        loops.current_lanes().run(work, n, grain=_ROWS)
        slopes, columns = torch.from_numpy(by_column.sum(0))
        squares, lengths, active = torch.from_numpy(numbers.sum(0))
        return Totals(
            slope=slopes.float(),
            squares=squares,
            spread=lengths - columns.square().sum() / n,
            active=active,
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
        w = self._w
        width, dim = w.w_enc.shape
        features, counts, values = (t.numpy() for t in forward[1:4])
        starts, slots = loops.transpose(features, counts, values, width)
        extra_row = np.full(width, -1, dtype=np.int32)
        nothing = AuxGradients(torch.zeros(0), *(torch.zeros(0, *t.shape[1:]) for t in w[:3]))
        extra = aux or nothing
        extra_row[extra.features.numpy().astype(np.int64)] = np.arange(len(extra.features))
        penalty = torch.zeros(0, dim) if decoder_gradient is None else decoder_gradient
        numbers = np.array([adam.rate, *BETAS, adam.unbias, EPSILON], dtype=np.float32)
        moments = (w.m_w_enc, w.v_w_enc, w.m_b_enc, w.v_b_enc, w.m_w_dec, w.v_w_dec)
        # A sum for every so many features: the total does not depend on the number of lanes.
        through_encoder = torch.zeros(-(-width // _FEATURES), dim)

        def update(first: int, last: int) -> None:
            for start in range(first, last, _FEATURES):
                loops.update_rows(
                    start, min(start + _FEATURES, last), starts, slots, features.shape[1], values,
                    forward.g_values.numpy(), forward.slopes.numpy(), forward.centred.numpy(),
                    np.array(ends, dtype=np.int32), extra_row, extra.w_enc.contiguous().numpy(),
                    extra.b_enc.numpy(), extra.w_dec.contiguous().numpy(),
                    penalty.contiguous().numpy(), w.w_enc.numpy(), w.b_enc.numpy(),
                    w.w_dec.numpy(), tuple(t.numpy() for t in moments),
                    self._low.view(torch.uint16).numpy(), numbers,
                    through_encoder[start // _FEATURES].numpy(),
                )  # fmt: skip

        loops.current_lanes().run(update, width, grain=_FEATURES)
        return torch.from_numpy(np.diff(starts) > 0), through_encoder.sum(0)

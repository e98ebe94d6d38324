"""`sparse.Kernels` on a CPU: compiled loops, one lane per core.

All work on every row runs in the lanes. After a torch operation on many rows, torch's threads would
wait busily for the next operation, on the cores that the lanes need.
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
from vision_sae.models.precision import training_dtype

_CHUNK_BYTES = 3 * 2**20
"""Bytes of the pre-activations of a chunk of rows, so that they stay in the core's cache."""
_FEATURES = 128
"""Features that are updated together."""
_ROWS = 512
"""Rows that are summed together, and the most rows in a chunk: every lane gets some."""
_INTEGER = {torch.bfloat16: torch.int16, torch.float32: torch.int32}


class CpuKernels:
    """The costly operations of a training step, on this machine's cores."""

    def __init__(self, weights: Weights, *, dtype: torch.dtype | None = None) -> None:
        """``dtype`` is the precision of the choosing product; by default that of
        `training_dtype`."""
        self._w = weights
        self._dtype = dtype or training_dtype("cpu")
        low = self._dtype == torch.bfloat16
        self._low = weights.w_enc.to(torch.bfloat16) if low else weights.w_enc[:0].bfloat16()
        self._scratch = threading.local()

    def refresh(self) -> None:
        """Update the bfloat16 copy of the encoder, after a change of the weights from outside."""
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
            candidates = shared.group.gather(torch.from_numpy(kept), shared.rows).numpy()
            candidates, limit = candidates[candidates > 0], k * shared.rows
            if len(candidates) > limit:
                bound = np.partition(candidates, -limit)[-limit]
                loops.keep_above(kept, bound, features, counts)
        return chosen

    def finish(self, chosen: Chosen, ends: tuple[int, ...], weight: float) -> Forward:
        """See `sparse.Kernels`."""
        (n, dim), slots = chosen.centred.shape, chosen.features.shape[1]
        forward = Forward(
            *chosen,
            values=torch.empty(n, slots),
            error=torch.empty(n, dim),
            output_gradients=torch.empty(len(ends), n, dim),
            g_values=torch.empty(n, slots),
        )
        x, features, counts, values, error, output_gradients, g_values = (
            t.numpy() for t in forward
        )
        w_enc, b_enc, w_dec = (t.numpy() for t in self._w[:3])
        weights = np.full(len(ends), weight, dtype=np.float32)
        groups = np.array(ends, dtype=np.int32)

        def work(first: int, last: int) -> None:
            rows = slice(first, last)
            loops.activate(features[rows], counts[rows], x[rows], w_enc, b_enc, values[rows])
            loops.reconstruct(
                features[rows], counts[rows], values[rows], x[rows], w_dec, groups, weights,
                error[rows], output_gradients[:, rows], g_values[rows],
            )  # fmt: skip

        loops.current_lanes().run(work, n)
        return forward

    def gradients_at(self, forward: Forward, output_gradients: Tensor) -> Forward:
        """See `sparse.Kernels`."""
        g_values = torch.empty_like(forward.values)
        loops.dot_rows(
            forward.features.numpy(),
            forward.counts.numpy(),
            output_gradients[0].contiguous().numpy(),
            self._w.w_dec.numpy(),
            g_values.numpy(),
        )
        g_values.mul_(forward.values > 0)
        return forward._replace(output_gradients=output_gradients, g_values=g_values)

    def totals(self, forward: Forward) -> Totals:
        """See `sparse.Kernels`."""
        n, dim = forward.centred.shape
        # One sum per `_ROWS` rows, so that the total does not depend on the number of lanes.
        by_column = np.zeros((-(-n // _ROWS), 2, dim))
        numbers = np.zeros((len(by_column), 3))
        output_gradient, centred = forward.output_gradients[0].numpy(), forward.centred.numpy()
        error, values = forward.error.numpy(), forward.values.numpy()

        def work(first: int, last: int) -> None:
            for start in range(first, last, _ROWS):
                rows, part = slice(start, min(start + _ROWS, last)), start // _ROWS
                loops.sum_rows(
                    output_gradient[rows], centred[rows], error[rows], values[rows],
                    by_column[part], numbers[part],
                )  # fmt: skip

        loops.current_lanes().run(work, n, grain=_ROWS)
        output_gradients, columns = torch.from_numpy(by_column.sum(0))
        squares, lengths, active = torch.from_numpy(numbers.sum(0))
        return Totals(
            output_gradient=output_gradients.float(),
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
        firings = loops.Firings(
            starts,
            slots,
            values,
            forward.g_values.numpy(),
            forward.output_gradients.numpy(),
            forward.centred.numpy(),
            np.array(ends, dtype=np.int32),
        )
        further = _further(w, aux, decoder_gradient)
        changed = (w.w_enc, w.b_enc, w.w_dec, w.m_w_enc, w.v_w_enc, w.m_b_enc, w.v_b_enc)
        low = self._low.view(torch.uint16)
        parameters = loops.Parameters(*(t.numpy() for t in (*changed, w.m_w_dec, w.v_w_dec, low)))
        numbers = (adam.rate, *BETAS, adam.unbias, EPSILON)
        step = loops.AdamNumbers(*(np.float32(number) for number in numbers))
        # One sum per `_FEATURES` features: the total does not depend on the number of lanes.
        through_encoder = torch.zeros(-(-width // _FEATURES), dim)
        sums = through_encoder.numpy()

        def update(first: int, last: int) -> None:
            for start in range(first, last, _FEATURES):
                stop, total = min(start + _FEATURES, last), sums[start // _FEATURES]
                loops.update_rows(start, stop, firings, further, parameters, step, total)

        loops.current_lanes().run(update, width, grain=_FEATURES)
        return torch.from_numpy(np.diff(starts) > 0), through_encoder.sum(0)


def _further(
    w: Weights, aux: AuxGradients | None, decoder_gradient: Tensor | None
) -> loops.FurtherGradients:
    """The gradients of AuxK and of penalties on the decoder; empty arrays for absent ones."""
    width, dim = w.w_enc.shape
    nothing = AuxGradients(torch.zeros(0), *(torch.zeros(0, *t.shape[1:]) for t in w[:3]))
    extra = aux or nothing
    rows = np.full(width, -1, dtype=np.int32)
    rows[extra.features.numpy().astype(np.int64)] = np.arange(len(extra.features))
    penalty = torch.zeros(0, dim) if decoder_gradient is None else decoder_gradient
    return loops.FurtherGradients(
        rows,
        extra.w_enc.contiguous().numpy(),
        extra.b_enc.numpy(),
        extra.w_dec.contiguous().numpy(),
        penalty.contiguous().numpy(),
    )

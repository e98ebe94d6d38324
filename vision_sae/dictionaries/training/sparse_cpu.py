"""`sparse.Kernels` on a CPU: compiled loops, one lane per core.

All work on every row runs in the lanes. After a torch operation on many rows, torch's threads would
wait busily for the next operation, on the cores that the lanes need.
"""

from __future__ import annotations

import threading

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vision_sae.dictionaries import kernels_cpu as loops
from vision_sae.dictionaries.kernels_shortlist import Lists, drop_below
from vision_sae.dictionaries.shortlist import BLOCK_ROWS, Shortlist
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

_CHUNK_BYTES = 3 * 2**20
"""Bytes of the pre-activations of a chunk of rows, so that they stay in the core's cache."""
_FEATURES = 128
"""Features that are updated together."""
_ROWS = 512
"""Rows that are summed together, and the most rows in a chunk: every lane gets some."""
_INTEGER = {torch.bfloat16: torch.int16, torch.float32: torch.int32}


class CpuKernels:
    """The costly operations of a training step, on this machine's cores."""

    def __init__(self, weights: Weights, *, dtype: torch.dtype | None) -> None:
        """``dtype`` is the precision of the dense product that chooses features. With None a
        `Shortlist` chooses: as a product in float32 does, in less time."""
        self._w, self._dtype = weights, dtype
        self._shortlist = Shortlist(weights.w_enc, weights.b_enc) if dtype is None else None
        low = dtype == torch.bfloat16
        self._low = weights.w_enc.to(torch.bfloat16) if low else weights.w_enc[:0].bfloat16()
        self._scratch = threading.local()

    def refresh(self) -> None:
        """Update the bfloat16 copy of the encoder, after a change of the weights from outside."""
        if len(self._low):
            self._low.copy_(self._w.w_enc)

    def choose(self, z: Tensor, k: int, shared: Shared | None) -> Chosen:
        """See `sparse.Kernels`."""
        n, width = len(z), len(self._w.w_enc)
        slots = min(width, WIDEST_ROW * k) if shared else k
        chosen = Chosen(
            torch.empty_like(z),
            torch.zeros(n, slots, dtype=torch.int32),
            torch.zeros(n, dtype=torch.int32),
            torch.zeros(n, slots),
        )
        if self._shortlist is not None:
            self._shortlist.refresh()
            self._choose_listed(self._shortlist, z, k, chosen, shared)
        elif self._dtype is not None:
            self._choose_multiplied(self._dtype, z, k, chosen, shared)
        return chosen

    def _choose_listed(
        self, shortlist: Shortlist, z: Tensor, k: int, chosen: Chosen, shared: Shared | None
    ) -> None:
        """Fill ``chosen`` by the lists of ``shortlist``."""
        centred, features, counts, values = (t.numpy() for t in chosen)
        slots, lanes = features.shape[1], loops.current_lanes()
        blocks: dict[int, Lists] = {}

        def work(first: int, last: int) -> None:
            rows = slice(first, last)
            torch.sub(z[rows], self._w.b_dec, out=chosen.centred[rows])
            if not shared:
                shortlist.choose(centred[rows], slots, features[rows], values[rows], counts[rows])
                return
            for start in range(first, last, BLOCK_ROWS):
                stop = min(start + BLOCK_ROWS, last)
                blocks[start], _ = shortlist.lists(centred[start:stop], slots)

        def choose(first: int, last: int) -> None:
            for start in starts[first:last]:
                lists = blocks.pop(start)
                rows = slice(start, start + len(lists.counts))
                shortlist.choose_listed(
                    centred[rows], lists, slots, features[rows], values[rows], counts[rows]
                )

        lanes.run(work, len(z), grain=shortlist.grain)
        if shared:
            starts = sorted(blocks)
            lower = np.zeros((len(z), slots), dtype=np.float32)
            for start, lists in blocks.items():
                shortlist.least_bounds(lists, lower[start : start + len(lists.counts)])
            bound = _least_of_batch(lower, k, shared)
            for lists in blocks.values():
                drop_below(lists, bound)
            lanes.run(choose, len(starts))
            loops.keep_above(values, _least_of_batch(values, k, shared), features, counts)

    def _choose_multiplied(
        self, dtype: torch.dtype, z: Tensor, k: int, chosen: Chosen, shared: Shared | None
    ) -> None:
        """Fill ``chosen`` by a dense product in ``dtype``."""
        centred, features, counts, values = (t.numpy() for t in chosen)
        width, slots, lanes = len(self._w.w_enc), features.shape[1], loops.current_lanes()
        w_enc, b_enc = self._w.w_enc.numpy(), self._w.b_enc.numpy()
        directions = (self._low if len(self._low) else self._w.w_enc).T
        bias = self._w.b_enc.to(dtype)
        size = max(1, min(_ROWS, _CHUNK_BYTES // (width * dtype.itemsize)))

        def work(first: int, last: int) -> None:
            for start in range(first, last, size):
                rows = slice(start, min(start + size, last))
                pre = self._chunk(rows.stop - start, dtype)
                torch.sub(z[rows], self._w.b_dec, out=chosen.centred[rows])
                torch.addmm(bias, chosen.centred[rows].to(dtype), directions, out=pre)
                bits = pre.view(_INTEGER[dtype]).numpy()
                loops.choose_largest(bits, slots, features[rows], counts[rows])
                if shared:
                    taken = pre.gather(1, chosen.features[rows].long()).float().numpy()
                    used = np.arange(slots) < counts[rows, None]
                    values[rows] = np.where(used, taken, 0)

        def activate(first: int, last: int) -> None:
            rows = slice(first, last)
            loops.activate(features[rows], counts[rows], centred[rows], w_enc, b_enc, values[rows])

        lanes.run(work, len(z), grain=size)
        if shared:
            loops.keep_above(values, _least_of_batch(values, k, shared), features, counts)
        lanes.run(activate, len(z))

    def _chunk(self, rows: int, dtype: torch.dtype) -> Tensor:
        """This lane's buffer for the pre-activations of a chunk (rows, F)."""
        buffer: Tensor | None = getattr(self._scratch, "buffer", None)
        if buffer is None or len(buffer) < rows:
            buffer = torch.empty(rows, len(self._w.w_enc), dtype=dtype)
            self._scratch.buffer = buffer
        return buffer[:rows]

    def finish(self, chosen: Chosen, ends: tuple[int, ...], weight: float) -> Forward:
        """See `sparse.Kernels`."""
        (n, dim), slots = chosen.centred.shape, chosen.features.shape[1]
        forward = Forward(
            *chosen,
            error=torch.empty(n, dim),
            output_gradients=torch.empty(len(ends), n, dim),
            g_values=torch.empty(n, slots),
        )
        x, features, counts, values, error, output_gradients, g_values = (
            t.numpy() for t in forward
        )
        w_dec = self._w.w_dec.numpy()
        weights = np.full(len(ends), weight, dtype=np.float32)
        groups = np.array(ends, dtype=np.int32)

        def work(first: int, last: int) -> None:
            rows = slice(first, last)
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


def _least_of_batch(values: NDArray[np.float32], k: int, shared: Shared) -> float:
    """The least of the ``k * rows`` largest positive ``values`` (N, K) of all processes; 0 where
    there are fewer."""
    everywhere = shared.group.gather(torch.from_numpy(values), shared.rows).numpy()
    positive, limit = everywhere[everywhere > 0], k * shared.rows
    return float(np.partition(positive, -limit)[-limit]) if len(positive) > limit else 0.0

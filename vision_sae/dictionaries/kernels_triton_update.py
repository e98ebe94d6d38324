"""Adam's step of a k-sparse autoencoder in Triton; `kernels_triton` says shapes and bounds.

Not yet run on a GPU: ``pytest tests/gpu`` would.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from vision_sae.dictionaries.kernels_triton import current_device

WIDEST = 4096
"""The largest D: a program keeps whole rows in registers."""
_TILE = 4096
"""Numbers of a tile of gathered rows: 32 registers a thread."""
_PROGRAMS = 4096
"""The most programs; each writes a sum of length D."""


class Firings(NamedTuple):
    """Where each feature fires in a batch, and what makes its gradients."""

    starts: Tensor
    """Feature f fires in the slots numbered ``slots[starts[f]:starts[f + 1]]``; int64 (F + 1)."""
    slots: Tensor
    """Numbers n * K + j of the slots with positive values, sorted by feature; int64."""
    values: Tensor
    """Activations, float32 (N, K)."""
    g_values: Tensor
    """Gradients of the loss by the activations, float32 (N, K)."""
    output_gradients: Tensor
    """Gradients of the loss by the output of a feature of each nested group, (G, N, D)."""
    groups: Tensor
    """The nested group of each feature, int32 (F)."""
    centred: Tensor
    """Inputs of the encoder, (N, D)."""


class AuxRows(NamedTuple):
    """Gradients of AuxK; E rows."""

    rows: Tensor
    """A feature's row in the tensors below, or -1; int32 (F)."""
    w_enc: Tensor
    """(E, D)"""
    b_enc: Tensor
    """(E)"""
    w_dec: Tensor
    """(E, D)"""


class Parameters(NamedTuple):
    """What a step changes in place: the parameters and their moments, float32."""

    w_enc: Tensor
    """(F, D)"""
    b_enc: Tensor
    """(F)"""
    w_dec: Tensor
    """(F, D), rows of unit norm."""
    m_w_enc: Tensor
    v_w_enc: Tensor
    m_b_enc: Tensor
    v_b_enc: Tensor
    m_w_dec: Tensor
    v_w_dec: Tensor


class AdamNumbers(NamedTuple):
    """The numbers of one Adam step (Kingma & Ba 2015)."""

    rate: float
    """Learning rate over (1 - beta1^t)."""
    unbias: float
    """1 / sqrt(1 - beta2^t)."""
    beta1: float
    beta2: float
    epsilon: float


@triton.jit
def _adam(
    at: Any,
    inside: Any,
    p: Any,
    gradient: Any,
    moments: Any,
    squares: Any,
    rate: Any,
    unbias: Any,
    BETA1: tl.constexpr,
    BETA2: tl.constexpr,
    EPSILON: tl.constexpr,
) -> Any:
    """The numbers ``p`` after an Adam step; writes the moments at ``at``."""
    m = tl.load(moments + at, mask=inside, other=0.0)
    v = tl.load(squares + at, mask=inside, other=0.0)
    m = BETA1 * m + (1 - BETA1) * gradient
    v = BETA2 * v + (1 - BETA2) * gradient * gradient
    tl.store(moments + at, m, mask=inside)
    tl.store(squares + at, v, mask=inside)
    return p - rate * m / (tl.sqrt(v) * unbias + EPSILON)


@triton.jit
def _update(
    starts: Any,
    slots: Any,
    values: Any,
    g_values: Any,
    output_gradients: Any,
    groups: Any,
    centred: Any,
    extra_rows: Any,
    extra_enc: Any,
    extra_bias: Any,
    extra_dec: Any,
    penalty: Any,
    w_enc: Any,
    b_enc: Any,
    w_dec: Any,
    m_enc: Any,
    v_enc: Any,
    m_bias: Any,
    v_bias: Any,
    m_dec: Any,
    v_dec: Any,
    low: Any,
    through: Any,
    rate: Any,
    unbias: Any,
    rows: Any,
    slot_count: Any,
    dim: Any,
    width: Any,
    each: Any,
    BETA1: tl.constexpr,
    BETA2: tl.constexpr,
    EPSILON: tl.constexpr,
    EXTRA: tl.constexpr,
    PENALTY: tl.constexpr,
    LOW: tl.constexpr,
    SLOTS: tl.constexpr,
    DIMS: tl.constexpr,
) -> None:
    """The features of one program of `update_rows`, one after another."""
    program = tl.program_id(0)
    d = tl.arange(0, DIMS)
    inside = d < dim
    sums = tl.zeros((DIMS,), dtype=tl.float32)
    for f in range(program * each, tl.minimum(program * each + each, width)):
        begin = tl.load(starts + f)
        end = tl.load(starts + f + 1)
        outputs = output_gradients + tl.load(groups + f).to(tl.int64) * rows * dim
        enc = tl.zeros((DIMS,), dtype=tl.float32)
        dec = tl.zeros((DIMS,), dtype=tl.float32)
        by_slot = tl.zeros((SLOTS,), dtype=tl.float32)
        for at in range(begin, end, SLOTS):
            places = at + tl.arange(0, SLOTS)
            used = places < end
            slot = tl.load(slots + places, mask=used, other=0)
            value = tl.load(values + slot, mask=used, other=0.0)
            g_value = tl.load(g_values + slot, mask=used, other=0.0)
            where = (slot // slot_count)[:, None] * dim + d[None, :]
            both = used[:, None] & inside[None, :]
            dec += tl.sum(tl.load(outputs + where, mask=both, other=0.0) * value[:, None], 0)
            enc += tl.sum(tl.load(centred + where, mask=both, other=0.0) * g_value[:, None], 0)
            by_slot += g_value
        bias = tl.sum(by_slot, 0)
        at_row = tl.cast(f, tl.int64) * dim + d
        if EXTRA:
            extra = tl.load(extra_rows + f).to(tl.int64)
            present = extra >= 0
            enc += tl.load(extra_enc + extra * dim + d, mask=inside & present, other=0.0)
            dec += tl.load(extra_dec + extra * dim + d, mask=inside & present, other=0.0)
            bias += tl.load(extra_bias + extra, mask=present, other=0.0)
        if PENALTY:
            dec += tl.load(penalty + at_row, mask=inside, other=0.0)

        encoder = tl.load(w_enc + at_row, mask=inside, other=0.0)
        decoder = tl.load(w_dec + at_row, mask=inside, other=0.0)
        sums += bias * encoder
        dec -= tl.sum(dec * decoder, 0) * decoder
        encoder = _adam(
            at_row, inside, encoder, enc, m_enc, v_enc, rate, unbias, BETA1, BETA2, EPSILON
        )
        decoder = _adam(
            at_row, inside, decoder, dec, m_dec, v_dec, rate, unbias, BETA1, BETA2, EPSILON
        )
        shift = tl.load(b_enc + f)
        shift = _adam(f, f >= 0, shift, bias, m_bias, v_bias, rate, unbias, BETA1, BETA2, EPSILON)
        decoder = decoder / tl.sqrt(tl.sum(decoder * decoder, 0))
        tl.store(w_enc + at_row, encoder, mask=inside)
        tl.store(w_dec + at_row, decoder, mask=inside)
        tl.store(b_enc + f, shift)
        if LOW:
            tl.store(low + at_row, encoder.to(low.dtype.element_ty), mask=inside)
    tl.store(through + program.to(tl.int64) * dim + d, sums, mask=inside)


def update_rows(
    firings: Firings,
    aux: AuxRows | None,
    penalty: Tensor | None,
    parameters: Parameters,
    low: Tensor | None,
    adam: AdamNumbers,
) -> Tensor:
    """Sum the gradients of every feature and take its Adam step, in place.

    ``penalty`` (F, D) is a further gradient of the decoder. A decoder row's gradient loses its part
    along the row before the step, and the row gets unit norm after the step. ``low`` (F, D) becomes
    the encoder in its own precision. Returns ``sum_f db_enc[f] * w_enc[f]`` (D) before the step,
    for the gradient of b_dec.
    """
    width, dim = parameters.w_enc.shape
    rows, slot_count = firings.values.shape
    each = triton.cdiv(width, _PROGRAMS)
    programs, dims = triton.cdiv(width, each), triton.next_power_of_2(dim)
    through = torch.empty(programs, dim, dtype=torch.float32, device=parameters.w_enc.device)
    nothing = parameters.w_enc  # stands for absent tensors, which the kernel never reads
    extra = aux or AuxRows(*(nothing for _ in AuxRows._fields))
    with current_device(through):
        _update[(programs,)](
            *firings, *extra, nothing if penalty is None else penalty, *parameters,
            nothing if low is None else low, through, adam.rate, adam.unbias,
            rows, slot_count, dim, width, each,
            BETA1=adam.beta1, BETA2=adam.beta2, EPSILON=adam.epsilon,
            EXTRA=aux is not None, PENALTY=penalty is not None, LOW=low is not None,
            SLOTS=max(_TILE // dims, 1), DIMS=dims,
            num_warps=4 if dims <= 1024 else 8,
        )  # fmt: skip
    return through.sum(0)

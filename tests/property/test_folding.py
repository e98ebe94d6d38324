"""The folds are exact for every input scale, centre and decoder norm."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vision_sae.dictionaries.interop.folding import (
    SaeWeights,
    on_site_vectors,
    subtracting,
    unit_rows,
)
from vision_sae.dictionaries.kinds.relu import ReluSae
from vision_sae.dictionaries.kinds.topk import TopKSae

seeds = st.integers(0, 2**31)


def weights_and_inputs(seed: int) -> tuple[SaeWeights, Tensor]:
    g = torch.Generator().manual_seed(seed)
    shapes = ((6, 4), (6,), (6, 4), (4,), (9, 4))
    *weights, x = (torch.randn(shape, generator=g) for shape in shapes)
    return SaeWeights(*weights), x


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@given(seeds)
def test_subtracting_undoes_the_subtraction(seed: int) -> None:
    w, x = weights_and_inputs(seed)
    sae = ReluSae(**subtracting(w)._asdict())
    close(sae.pre_activations(x), x @ w.w_enc.T + w.b_enc)


@given(seeds, st.floats(1e-2, 1e2), st.floats(-5, 5))
def test_scaled_and_centred_inputs(seed: int, scale: float, center: float) -> None:
    w, x = weights_and_inputs(seed)
    y = (x - center) * scale
    inner, outer = (
        TopKSae(k=2, **v._asdict()) for v in (w, on_site_vectors(w, center=center, scale=scale))
    )
    # Rounding of b_dec' is relative to b_dec / scale, which may dwarf x.
    size = max(1.0, 1 / scale)
    close(
        outer.decode(outer.encode(x)) / size,
        (inner.decode(inner.encode(y)) / scale + center) / size,
    )


@given(seeds)
def test_unit_rows_keep_reconstructions_of_all_that_fires(seed: int) -> None:
    w, x = weights_and_inputs(seed)
    plain, folded = ReluSae(**w._asdict()), ReluSae(**unit_rows(w)._asdict())
    close(folded.decode(folded.encode(x)), plain.decode(plain.encode(x)))
    close(folded.decoder.norm(dim=1), torch.ones(6))


def test_feature_without_a_direction_keeps_finite_weights() -> None:
    w, _ = weights_and_inputs(0)
    w.w_dec[2] = 0
    folded = unit_rows(w)
    assert all(t.isfinite().all() for t in folded)
    assert torch.equal(folded.w_dec[2], torch.zeros(4))

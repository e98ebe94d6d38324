"""The sparse products against their dense definitions in float64."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vision_sae.dictionaries.kernels import bag, sampled_dot, top_k, transpose, transposed_bag


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(indices (N, k) ascending, values (N, k), rows (F, D), a (N, D)); many features unused."""
    n, dim = draw(st.integers(0, 6)), draw(st.integers(1, 5))
    width = draw(st.integers(1, 12))
    k = draw(st.integers(1, width))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scores = torch.rand(n, width, generator=generator)
    indices = scores.topk(k, dim=1).indices.sort(dim=1).values
    values = torch.randn(n, k, generator=generator).relu()
    rows = torch.randn(width, dim, generator=generator)
    return indices, values, rows, torch.randn(n, dim, generator=generator)


def dense(indices: Tensor, values: Tensor, width: int) -> Tensor:
    return torch.zeros(len(indices), width).scatter_(1, indices, values)


@settings(deadline=None)
@given(problems())
def test_bag_is_codes_times_rows(problem: tuple[Tensor, ...]) -> None:
    indices, values, rows, _ = problem
    torch.testing.assert_close(bag(indices, values, rows), dense(indices, values, len(rows)) @ rows)


@settings(deadline=None)
@given(problems())
def test_sampled_dot_is_the_product_at_the_codes(problem: tuple[Tensor, ...]) -> None:
    indices, _, rows, a = problem
    torch.testing.assert_close(sampled_dot(indices, a, rows), (a @ rows.T).gather(1, indices))


@settings(deadline=None)
@given(problems())
def test_transposed_bag_is_transposed_codes_times_a(problem: tuple[Tensor, ...]) -> None:
    indices, values, rows, a = problem
    out = transposed_bag(transpose(indices, len(rows)), values, a)
    torch.testing.assert_close(out, dense(indices, values, len(rows)).T @ a)


@settings(deadline=None)
@given(problems())
def test_top_k_keeps_the_largest_in_order_of_index(problem: tuple[Tensor, ...]) -> None:
    *_, a = problem
    k = max(1, a.shape[1] // 2)
    indices, values = top_k(a, k)
    assert torch.equal(indices, indices.sort(dim=1).values)
    assert torch.equal(values, a.gather(1, indices))
    assert torch.equal(values.sort(dim=1).values, a.sort(dim=1).values[:, -k:])

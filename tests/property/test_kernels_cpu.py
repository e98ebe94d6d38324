"""The compiled loops against their dense definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vision_sae.dictionaries import kernels_cpu as loops


@st.composite
def pre_activations(draw: st.DrawFn) -> tuple[torch.Tensor, int]:
    """(pre-activations (N, F) in one of the two precisions, k); ties and negatives abound."""
    n, width = draw(st.integers(1, 4)), draw(st.integers(1, 300))
    k = draw(st.integers(1, min(width, 40)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    values = torch.randn(n, width, generator=generator) + draw(st.sampled_from([-2.0, 0.0, 2.0]))
    if draw(st.booleans()):
        values = values.round()
    return values.to(draw(st.sampled_from([torch.float32, torch.bfloat16]))), k


def as_integers(values: torch.Tensor) -> NDArray[np.signedinteger]:
    size = torch.int16 if values.dtype == torch.bfloat16 else torch.int32
    return np.asarray(values.view(size).numpy())


@settings(deadline=None, max_examples=200)
@given(pre_activations())
def test_chosen_are_the_k_largest_positive_in_ascending_order(
    problem: tuple[torch.Tensor, int],
) -> None:
    values, k = problem
    features = np.zeros((len(values), k), dtype=np.int32)
    counts = np.zeros(len(values), dtype=np.int32)
    loops.choose_largest(as_integers(values), k, features, counts)
    for row, chosen, count in zip(values.float(), features, counts, strict=True):
        expected = row.sort(descending=True).values[:k]
        expected = expected[expected > 0]
        assert count == len(expected)
        assert (np.diff(chosen[:count]) > 0).all()
        got = row[torch.from_numpy(chosen[:count]).long()]
        assert torch.equal(got.sort(descending=True).values, expected)


@settings(deadline=None)
@given(pre_activations())
def test_equal_values_go_to_the_lower_feature_numbers(problem: tuple[torch.Tensor, int]) -> None:
    values, k = torch.ones_like(problem[0]), problem[1]
    features = np.zeros((len(values), k), dtype=np.int32)
    loops.choose_largest(as_integers(values), k, features, np.zeros(len(values), dtype=np.int32))
    assert (features == np.arange(k)).all()


@st.composite
def codes(draw: st.DrawFn) -> dict[str, NDArray[Any]]:
    """Random codes of N rows with K slots, and random matrices of the shapes around them."""
    n, dim, width = draw(st.integers(1, 5)), draw(st.integers(1, 40)), draw(st.integers(2, 12))
    k = draw(st.integers(1, width))
    random = np.random.default_rng(draw(st.integers(0, 2**31)))
    counts = random.integers(0, k + 1, n).astype(np.int32)
    features = np.zeros((n, k), dtype=np.int32)
    values = np.zeros((n, k), dtype=np.float32)
    for row, count in enumerate(counts):
        features[row, :count] = np.sort(random.permutation(width)[:count])
        values[row, :count] = np.maximum(random.normal(size=count), 0)
    shapes = {"x": (n, dim), "w_enc": (width, dim), "w_dec": (width, dim), "b_enc": (width,)}
    drawn = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return {"features": features, "counts": counts, "values": values, **drawn}


def dense(problem: dict[str, NDArray[Any]], values: NDArray[Any]) -> NDArray[Any]:
    """(N, F) with ``values`` at the slots taken."""
    out = np.zeros((len(values), len(problem["b_enc"])), dtype=np.float64)
    for row, count in enumerate(problem["counts"]):
        out[row, problem["features"][row, :count]] = values[row, :count]
    return out


@settings(deadline=None)
@given(codes())
def test_activations_are_those_of_the_dense_encoder(problem: dict[str, NDArray[Any]]) -> None:
    p = problem
    values = np.full_like(p["values"], np.nan)
    loops.activate(p["features"], p["counts"], p["x"], p["w_enc"], p["b_enc"], values)
    pre = np.maximum(p["x"] @ p["w_enc"].T + p["b_enc"], 0)
    taken = dense(p, np.ones_like(values)) > 0
    np.testing.assert_allclose(dense(p, values), pre * taken, rtol=1e-4, atol=1e-5)
    assert not np.isnan(values).any()


@settings(deadline=None)
@given(codes(), st.data())
def test_nested_errors_and_gradients_are_those_of_the_dense_decoder(
    problem: dict[str, NDArray[Any]], data: st.DataObject
) -> None:
    p, (n, dim), width = problem, problem["x"].shape, len(problem["b_enc"])
    cut = data.draw(st.integers(1, width))
    ends = [cut, width] if cut < width else [width]
    weights = [0.5, 2.0][: len(ends)]
    error, output_gradients = (
        np.empty((n, dim), np.float32),
        np.empty((len(ends), n, dim), np.float32),
    )
    g_values = np.empty_like(p["values"])
    loops.reconstruct(
        p["features"], p["counts"], p["values"], p["x"], p["w_dec"], np.array(ends, np.int32),
        np.array(weights, np.float32), error, output_gradients, g_values,
    )  # fmt: skip
    f = torch.from_numpy(dense(p, p["values"])).requires_grad_()
    x, w_dec = (torch.from_numpy(p[name]).double() for name in ("x", "w_dec"))
    errors = [f[:, :end] @ w_dec[:end] - x for end in ends]
    loss = sum(w / 2 * e.square().sum() for w, e in zip(weights, errors, strict=True))
    loss.backward()
    np.testing.assert_allclose(error, errors[-1].detach(), rtol=1e-4, atol=1e-4)
    fires = dense(p, p["values"]) > 0
    np.testing.assert_allclose(dense(p, g_values), f.grad * fires, rtol=1e-3, atol=1e-3)


@settings(deadline=None)
@given(codes())
def test_transposed_codes_list_the_rows_of_each_feature(
    problem: dict[str, NDArray[Any]],
) -> None:
    p, width = problem, len(problem["b_enc"])
    starts, slots = loops.transpose(p["features"], p["counts"], p["values"], width)
    fires = dense(p, p["values"]) > 0
    for feature in range(width):
        rows = slots[starts[feature] : starts[feature + 1]] // p["features"].shape[1]
        assert rows.tolist() == np.flatnonzero(fires[:, feature]).tolist()


@settings(deadline=None)
@given(codes())
def test_gradients_are_those_of_the_dense_product(problem: dict[str, NDArray[Any]]) -> None:
    p, (n, dim), width = problem, problem["x"].shape, len(problem["b_enc"])
    g_values = np.random.default_rng(0).normal(size=p["values"].shape).astype(np.float32)
    output_gradients = np.random.default_rng(1).normal(size=(1, n, dim)).astype(np.float32)
    starts, slots = loops.transpose(p["features"], p["counts"], p["values"], width)
    g_enc, g_dec = np.zeros((2, width, dim), np.float32)
    g_b = np.zeros(width, np.float32)
    ends = np.array([width], np.int32)
    firings = loops.Firings(starts, slots, p["values"], g_values, output_gradients, p["x"], ends)
    loops.gradient_rows(0, width, firings, g_enc, g_b, g_dec)
    fires = dense(p, p["values"]) > 0
    g_dense = dense(p, g_values) * fires
    np.testing.assert_allclose(
        g_dec, dense(p, p["values"]).T @ output_gradients[0], rtol=1e-3, atol=1e-4
    )
    np.testing.assert_allclose(g_enc, g_dense.T @ p["x"], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(g_b, g_dense.sum(0), rtol=1e-3, atol=1e-4)


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(0, 50))
def test_lanes_cover_every_number_once(count: int, total: int) -> None:
    shares = loops.Lanes(count).run(lambda a, b: list(range(a, b)), total)
    assert [i for share in shares for i in share] == list(range(total))

"""Metrics against their definitions, written out the slow way."""

from __future__ import annotations

import math
from itertools import combinations, permutations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.planted.absorption import AbsorptionCounter
from tests.planted.dictionaries import planted_world
from tests.worlds.tiny import identity_sae
from vision_sae.dictionaries import metrics
from vision_sae.dictionaries.matching import assign, cosines, match, nearest
from vision_sae.dictionaries.protocol import to_codes
from vision_sae.evaluation.coherence import max_cosine_to_others
from vision_sae.evaluation.density import density_histogram
from vision_sae.evaluation.monosemanticity import (
    MonosemanticityAccumulator,
    max_pooled,
    monosemanticity,
)
from vision_sae.pictures.scenes import draw, random_attributes

SEEDS = st.integers(0, 2**32 - 1)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


@st.composite
def activations(draw: st.DrawFn, *, least: int = 1) -> torch.Tensor:
    """Sparse (N, F), with ties, dead and constant features."""
    rows, width = draw(st.integers(least, 9)), draw(st.integers(1, 6))
    values = st.sampled_from([0.0, 0.0, 0.0, 0.25, 1.0, 1.5, 7.0])
    cells = draw(st.lists(values, min_size=rows * width, max_size=rows * width))
    return torch.tensor(cells).reshape(rows, width)


@given(SEEDS, st.integers(2, 40), st.integers(1, 40))
def test_explained_variance_is_its_definition_whatever_the_batches(
    seed: int, rows: int, size: int
) -> None:
    x = normal(seed, rows, 4) + 100
    x_hat = identity_sae(4, 2).decode(identity_sae(4, 2).encode(x))
    error, spread = (x.double() - x_hat).square().sum(), (x.double() - x.double().mean(0))
    expected = float(1 - error / spread.square().sum())
    found = metrics.evaluate(identity_sae(4, 2), x.split(size)).explained_variance
    assert math.isclose(found, expected, rel_tol=1e-9)


@given(activations(), SEEDS)
def test_monosemanticity_is_the_loop_over_pairs(a: torch.Tensor, seed: int) -> None:
    e = normal(seed, len(a), 3).double()
    found = monosemanticity(a, e)
    unit = e / e.norm(dim=1, keepdim=True)
    for feature, column in enumerate(a.double().T):
        scale = float(column.max() - column.min())
        scaled = ((column - column.min()) / scale).tolist() if scale else [0.0] * len(a)
        pairs = [
            (scaled[i] * scaled[j], unit[i] @ unit[j]) for i, j in combinations(range(len(a)), 2)
        ]
        weight = sum(w for w, _ in pairs)
        if weight == 0:
            assert found[feature].isnan()
        else:
            expected = float(sum(w * cosine for w, cosine in pairs) / weight)
            assert math.isclose(found[feature], expected, rel_tol=1e-6, abs_tol=1e-6)


@given(activations(least=2), SEEDS, st.integers(1, 8))
def test_monosemanticity_does_not_depend_on_batches(a: torch.Tensor, seed: int, size: int) -> None:
    e = normal(seed, len(a), 3)
    found = MonosemanticityAccumulator(a.shape[1], 3)
    for rows, embeddings in zip(a.split(size), e.split(size), strict=True):
        found.add(rows, embeddings)
    torch.testing.assert_close(found.result(), monosemanticity(a, e), equal_nan=True)
    pairs = [torch.cosine_similarity(x, y, dim=0) for x, y in combinations(e.double(), 2)]
    assert math.isclose(found.floor(), float(sum(pairs) / len(pairs)), abs_tol=1e-9)


@given(activations(least=4))
def test_max_pooling_is_the_maximum_over_an_images_patches(a: torch.Tensor) -> None:
    whole = a[: len(a) // 2 * 2]
    expected = whole.reshape(-1, 2, a.shape[1]).amax(1)
    assert torch.equal(max_pooled(to_codes(whole), 2, a.shape[1]), expected)


@given(SEEDS, st.integers(2, 12), st.integers(1, 5), st.integers(1, 13))
def test_coherence_is_the_dense_formula_for_any_block(
    seed: int, width: int, dim: int, block: int
) -> None:
    rows = normal(seed, width, dim)
    unit = rows.double() / rows.double().norm(dim=1, keepdim=True)
    cosines = unit @ unit.T - 10 * torch.eye(width)
    found = max_cosine_to_others(rows, block=block).double()
    torch.testing.assert_close(found, cosines.amax(1), atol=1e-5, rtol=0)


@given(SEEDS, st.integers(1, 5), st.integers(1, 5))
def test_assignment_is_the_best_of_all_permutations(seed: int, width: int, dim: int) -> None:
    a, b = normal(seed, width, dim), normal(seed + 1, width, dim)
    expected = torch.cosine_similarity(a[:, None], b[None], dim=2).double()
    rows = list(range(width))
    best = max(float(expected[rows, list(order)].mean()) for order in permutations(rows))
    assert math.isclose(assign(cosines(a, b)).mean, best, abs_tol=1e-5)


@given(SEEDS, st.integers(1, 40))
def test_permuted_dictionary_matches_perfectly(seed: int, width: int) -> None:
    rows = normal(seed, width, 8)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(width))
    found = match(rows[order], rows)
    assert math.isclose(found.pairs.mean, 1, abs_tol=1e-5)
    assert torch.equal(found.pairs.right, order)


@given(SEEDS, st.integers(1, 9), st.integers(1, 9), st.integers(1, 10))
def test_nearest_is_the_row_maximum_for_any_block(
    seed: int, left: int, right: int, block: int
) -> None:
    a, b = normal(seed, left, 4), normal(seed + 1, right, 4)
    expected = torch.cosine_similarity(a[:, None], b[None], dim=2)
    found = nearest(cosines(a, b), block=block)
    strength = found.similarities
    torch.testing.assert_close(strength, expected.amax(1), atol=1e-5, rtol=0)
    torch.testing.assert_close(expected[found.left, found.right], strength, atol=1e-5, rtol=0)


@given(st.integers(1, 10**7), st.lists(st.floats(0, 1), max_size=30))
def test_histogram_holds_every_feature_in_its_bin(rows: int, shares: list[float]) -> None:
    fired = np.array([round(share * rows) for share in shares], dtype=np.int64)
    found = density_histogram(fired, rows)
    assert found.dead + found.counts.sum() == len(fired)
    assert found.edges[-1] == 0
    logs = [math.log10(count / rows) for count in fired if count]
    for low, high, count in zip(found.edges, found.edges[1:], found.counts, strict=False):
        inside = [low <= v < high or (high == 0 and v == 0) for v in logs]
        assert sum(inside) == count


@given(activations(least=3), SEEDS, st.integers(1, 9))
def test_absorption_is_its_definition(a: torch.Tensor, seed: int, size: int) -> None:
    random = np.random.default_rng(seed)
    parent, child = (torch.from_numpy(random.random(len(a)) < 0.5) for _ in range(2))
    parent[:2], child[0], child[1] = True, True, False
    counter = AbsorptionCounter(a.shape[1])
    parts = zip(a.split(size), parent.split(size), child.split(size), strict=True)
    for rows, holds, joined in parts:
        counter.add(to_codes(rows), holds, joined)
    found, fires = counter.result(), a > 0
    f1 = [2 * float((on & parent).sum()) / float(on.sum() + parent.sum()) for on in fires.T]
    assert found.feature == f1.index(max(f1))
    assert math.isclose(found.f1, max(f1))
    on = fires[:, found.feature].double()
    assert math.isclose(found.on_with_child, on[parent & child].mean())
    assert math.isclose(found.on_without_child, on[parent & ~child].mean())


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9000), st.integers(1, 9000))
def test_planted_rows_are_the_same_however_many_are_asked_for(few: int, many: int) -> None:
    world = planted_world(0, atoms=8, dim=4, children=2, active=1.0)
    few, many = sorted((few, many))
    assert torch.equal(world.sample(few).vectors, world.sample(many).vectors[:few])


@settings(max_examples=50, deadline=None)
@given(SEEDS, st.integers(32, 96))
def test_every_pixel_of_a_scene_is_of_exactly_one_part(seed: int, side: int) -> None:
    attributes = random_attributes(np.random.default_rng(seed))
    scene = draw(attributes, side=side, seed=seed)
    assert scene.image.size == (side, side)
    assert (np.sum(list(scene.parts.values()), axis=0) == 1).all()
    assert set(scene.parts) == {"object", "background"} | ({"word"} if attributes.word else set())
    assert all(mask.any() for mask in scene.parts.values())

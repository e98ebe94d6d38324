from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vision_sae.bundles import patch_index
from vision_sae.bundles.patch_index import (
    IndexReport,
    PatchIndexBuilder,
    index_type,
    load_index,
    save_index,
    search,
)
from vision_sae.errors import RecallTooLowError
from vision_sae.vectors import normalised


def vectors(rows: int, dim: int = 8) -> NDArray[np.float32]:
    raw = np.random.default_rng(0).normal(size=(rows, dim)).astype(np.float32)
    return normalised(raw, np.zeros(dim, dtype=np.float32))


def build_index(batches: list[NDArray[np.float32]], floor: float) -> tuple[Any, IndexReport]:
    rows = np.concatenate(batches)
    builder = PatchIndexBuilder(rows.shape[1], len(rows), rows.__getitem__)
    for batch in batches:
        builder.add(batch)
    return builder.finish(floor)


def test_normalised_rows_are_centred_and_of_unit_norm() -> None:
    # (4, 6) - (1, 2) = (3, 4), of norm 5.
    out = normalised(np.array([[4, 6]], dtype=np.float32), np.array([1, 2], dtype=np.float32))
    assert out.tolist() == [[pytest.approx(0.6), pytest.approx(0.8)]]


def test_row_at_the_centre_stays_zero() -> None:
    centre = np.array([1, 2], dtype=np.float32)
    assert normalised(centre[None], centre).tolist() == [[0, 0]]


def test_exact_index_equals_brute_force() -> None:
    x, queries = vectors(300), vectors(310)[300:]
    index, report = build_index([x[:100], x[100:]], floor=0.9)
    cosines, rows = search(index, queries, 10, report.nprobe)
    expected = np.argsort(-(queries @ x.T), axis=1)[:, :10]
    assert np.array_equal(rows, expected)
    np.testing.assert_allclose(
        cosines, np.take_along_axis(queries @ x.T, expected, axis=1), rtol=1e-5, atol=1e-6
    )


def test_row_is_its_own_nearest() -> None:
    x = vectors(300)
    index, report = build_index([x], floor=0.9)
    cosines, rows = search(index, x, 1, report.nprobe)
    assert rows[:, 0].tolist() == list(range(300))
    np.testing.assert_allclose(cosines, 1, rtol=1e-5)


def test_report_of_an_exact_index() -> None:
    _, report = build_index([vectors(300)], floor=0.9)
    assert report == ("Flat", 300, 0, 1.0, 0.9)


def test_fewer_rows_than_neighbours_are_exact_too() -> None:
    _, report = build_index([vectors(5)], floor=0.9)
    assert report.recall_at_10 == 1


def test_equal_rows_do_not_lower_the_recall() -> None:
    x = np.repeat(vectors(1), 50, axis=0)
    _, report = build_index([x], floor=0.9)
    assert report.recall_at_10 == 1


@pytest.mark.parametrize(
    ("rows", "dim", "kind"),
    # The number of lists is the power of two nearest to the square root of the rows.
    [
        (1, 768, "Flat"),
        (49_999, 768, "Flat"),
        (50_000, 768, "IVF256,SQ8"),
        (262_144, 768, "IVF512,SQ8"),
        (262_144, 128, "Flat"),
        (4_000_000, 128, "IVF2048,RaBitQfs,Refine(SQ8)"),
    ],
)
def test_type_is_chosen_by_size(rows: int, dim: int, kind: str) -> None:
    assert index_type(rows, dim) == kind


@pytest.fixture
def small_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """An inverted index for 2,000 rows of 2 or more dimensions, which visits one list at first."""
    monkeypatch.setattr(patch_index, "_FLAT_UP_TO", 1000 * 2)
    monkeypatch.setattr(patch_index, "_NPROBE", 1)


@pytest.mark.usefixtures("small_lists")
def test_lists_visited_are_raised_until_the_floor_is_reached() -> None:
    x = vectors(2000)
    _, loose = build_index([x], floor=0.1)
    _, tight = build_index([x], floor=0.9)
    assert loose.nprobe == 1
    assert tight.nprobe > 1
    assert loose.recall_at_10 < 0.9 <= tight.recall_at_10


@pytest.mark.usefixtures("small_lists")
def test_recorded_recall_is_that_of_brute_force() -> None:
    x = vectors(2000)
    index, report = build_index([x], floor=0.5)
    own = np.sort(np.random.default_rng(1).permutation(2000)[:400])
    cosines = x[own] @ x.T
    cosines[np.arange(400), own] = -2  # each left out of its own answer
    exact = np.argsort(-cosines, axis=1)[:, :10]
    _, found = search(index, x[own], 11, report.nprobe)
    hits = [
        len(set(e) & set([f for f in found_row if f != row][:10]))
        for row, e, found_row in zip(own, exact, found, strict=True)
    ]
    # Both are estimates from samples of the rows.
    assert report.recall_at_10 == pytest.approx(np.mean(hits) / 10, abs=0.06)


@pytest.mark.usefixtures("small_lists")
def test_equal_of_a_neighbour_is_as_good_as_the_neighbour() -> None:
    x = np.tile(vectors(50), (40, 1))  # every row has 39 equals, of which exact search names ten
    _, report = build_index([x], floor=0.9)
    assert report.recall_at_10 == 1


@pytest.mark.usefixtures("small_lists")
@given(st.sets(st.integers(1, 1999), max_size=8))
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_index_does_not_depend_on_how_the_rows_are_batched(cuts: set[int]) -> None:
    x = vectors(2000)
    index, report = build_index([x], floor=0.5)
    other, same = build_index(np.split(x, sorted(cuts)), floor=0.5)
    assert np.array_equal(faiss.serialize_index(other), faiss.serialize_index(index))
    assert same == report


def test_batch_is_let_go_once_it_is_indexed() -> None:
    x = vectors(300)
    builder = PatchIndexBuilder(8, 300, x.__getitem__)
    batch = x[:100].copy()
    gone = weakref.ref(batch)
    builder.add(batch)
    del batch
    assert gone() is None


@pytest.mark.usefixtures("small_lists")
def test_recall_under_the_floor_is_refused() -> None:
    x = vectors(2000, 2)  # so dense on the circle that 8 bits cannot tell neighbours apart
    with pytest.raises(RecallTooLowError, match="below the floor 0.999"):
        build_index([x], floor=0.999)


@pytest.mark.usefixtures("small_lists")
def test_saved_index_answers_alike(tmp_path: Path) -> None:
    x = vectors(2000)
    index, report = build_index([x], floor=0.5)
    save_index(index, tmp_path / "patches.faiss")
    mapped = load_index(tmp_path / "patches.faiss")
    for a, b in zip(
        search(index, x[:20], 10, report.nprobe),
        search(mapped, x[:20], 10, report.nprobe),
        strict=True,
    ):
        assert np.array_equal(a, b)


@pytest.mark.usefixtures("small_lists")
def test_saved_index_gives_back_its_rows(tmp_path: Path) -> None:
    x = vectors(2000)
    save_index(build_index([x], floor=0.5)[0], tmp_path / "patches.faiss")
    mapped = load_index(tmp_path / "patches.faiss")
    np.testing.assert_allclose(mapped.reconstruct(7), x[7], atol=0.02)  # of 8 bits


def test_saved_exact_index_answers_alike(tmp_path: Path) -> None:
    x = vectors(200)
    index, _ = build_index([x], floor=0.5)
    save_index(index, tmp_path / "patches.faiss")
    mapped = load_index(tmp_path / "patches.faiss")
    assert np.array_equal(search(mapped, x[:20], 10, 0)[1], search(index, x[:20], 10, 0)[1])

from __future__ import annotations

import weakref
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import faiss
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vision_sae.bundles import patch_index_builder
from vision_sae.bundles.patch_index import PatchIndex
from vision_sae.bundles.patch_index_builder import (
    IndexConfig,
    IndexReport,
    PatchIndexBuilder,
    Trial,
    candidates,
    fastest,
    usual_type,
)
from vision_sae.errors import InvalidInputError, RecallTooLowError
from vision_sae.vectors import normalised


def vectors(rows: int, dim: int = 8) -> NDArray[np.float32]:
    raw = np.random.default_rng(0).normal(size=(rows, dim)).astype(np.float32)
    return normalised(raw, np.zeros(dim, dtype=np.float32))


def build_index(
    batches: list[NDArray[np.float32]], floor: float, **options: Any
) -> tuple[PatchIndex, IndexReport]:
    rows = np.concatenate(batches)
    with TemporaryDirectory() as parent:
        folder = Path(parent) / "patches"
        sources = options.pop("sources", np.arange(len(rows)))
        config = IndexConfig(floor, **options)
        builder = PatchIndexBuilder(
            folder, rows.shape[1], len(rows), rows.__getitem__, sources, config
        )
        for batch in batches:
            builder.add(batch)
        report = builder.finish()
        return PatchIndex.load(folder, report.nprobe), report  # mapped files outlive their names


def test_normalised_rows_are_centred_and_of_unit_norm() -> None:
    # (4, 6) - (1, 2) = (3, 4), of norm 5.
    out = normalised(np.array([[4, 6]], dtype=np.float32), np.array([1, 2], dtype=np.float32))
    assert out.tolist() == [[pytest.approx(0.6), pytest.approx(0.8)]]


def test_row_at_the_centre_stays_zero() -> None:
    centre = np.array([1, 2], dtype=np.float32)
    assert normalised(centre[None], centre).tolist() == [[0, 0]]


def test_exact_index_equals_brute_force() -> None:
    x, queries = vectors(300), vectors(310)[300:]
    index, _ = build_index([x[:100], x[100:]], floor=0.9)
    cosines, rows = index.search(queries, 10)
    expected = np.argsort(-(queries @ x.T), axis=1)[:, :10]
    assert np.array_equal(rows, expected)
    np.testing.assert_allclose(
        cosines, np.take_along_axis(queries @ x.T, expected, axis=1), rtol=1e-5, atol=1e-6
    )


def test_row_is_its_own_nearest() -> None:
    x = vectors(300)
    index, _ = build_index([x], floor=0.9)
    cosines, rows = index.search(x, 1)
    assert rows[:, 0].tolist() == list(range(300))
    np.testing.assert_allclose(cosines, 1, rtol=1e-5)


def test_report_of_an_exact_index() -> None:
    _, report = build_index([vectors(300)], floor=0.9)
    assert report == ("Flat", 300, 0, 1.0, 0.9, [])


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
        (4_000_000, 128, "IVF2048,RaBitQfs,Refine(RR128,SQ8)"),
    ],
)
def test_type_is_chosen_by_size(rows: int, dim: int, kind: str) -> None:
    assert usual_type(rows, dim) == kind


@pytest.fixture
def small_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """An inverted index for 2,000 rows of 2 or more dimensions, which visits one list at first."""
    monkeypatch.setattr(patch_index_builder, "_FLAT_UP_TO", 1000 * 2)
    monkeypatch.setattr(patch_index_builder, "NPROBE", 1)


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
    _, found = index.search(x[own], 11)
    hits = [
        len(set(e) & set([f for f in found_row if f != row][:10]))
        for row, e, found_row in zip(own, exact, found, strict=True)
    ]
    # Both are estimates from samples of the rows.
    assert report.recall_at_10 == pytest.approx(np.mean(hits) / 10, abs=0.06)


@pytest.mark.usefixtures("small_lists")
def test_recall_is_of_pictures_that_are_not_in_the_index() -> None:
    # Groups of 8 rows lie close together, far from all others: with one list visited, a row finds
    # its own group, but little else.
    centres = np.repeat(vectors(250), 8, axis=0)
    x = normalised(centres + 0.05 * vectors(2000)[::-1], np.zeros(8, dtype=np.float32))
    _, own = build_index([x], floor=0.1, sources=np.arange(2000))
    _, other = build_index([x], floor=0.1, sources=np.arange(250))
    assert own.nprobe == other.nprobe == 1
    assert other.recall_at_10 < own.recall_at_10


def test_rows_of_one_source_have_nothing_to_find() -> None:
    _, report = build_index([vectors(300)], floor=0.9, sources=np.zeros(30, dtype=np.int64))
    assert report.recall_at_10 == 1


@pytest.mark.usefixtures("small_lists")
def test_equal_of_a_neighbour_is_as_good_as_the_neighbour() -> None:
    x = np.tile(vectors(50), (40, 1))  # every row has 39 equals, of which exact search names ten
    _, report = build_index([x], floor=0.9)
    assert report.recall_at_10 == 1


@pytest.mark.usefixtures("small_lists")
@given(st.sets(st.integers(1, 1999), max_size=8))
@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_index_does_not_depend_on_how_the_rows_are_batched(cuts: set[int]) -> None:
    x = vectors(2000)
    index, report = build_index([x], floor=0.5)
    other, same = build_index(np.split(x, sorted(cuts)), floor=0.5)
    assert same == report
    for one, expected in zip(other.search(x[:50], 10), index.search(x[:50], 10), strict=True):
        assert np.array_equal(one, expected)


def test_batch_is_let_go_once_it_is_indexed(tmp_path: Path) -> None:
    x = vectors(300)
    builder = PatchIndexBuilder(tmp_path / "patches", 8, 300, x.__getitem__, np.arange(300))
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


def brute_force(
    x: NDArray[np.float32], queries: NDArray[np.float32], k: int, allowed: NDArray[np.bool_]
) -> NDArray[np.int64]:
    cosines = np.where(allowed, queries @ x.T, -2)
    return np.argsort(-cosines, axis=1)[:, :k]


@pytest.mark.usefixtures("small_lists")
def test_index_gives_back_its_rows_in_the_order_asked_for() -> None:
    x = vectors(2000)
    index, _ = build_index([x], floor=0.5, shard_rows=700)
    wanted = np.array([1999, 7, 700, 699])
    np.testing.assert_allclose(index.vectors(wanted), x[wanted], atol=0.02)  # of 8 bits


@pytest.mark.usefixtures("small_lists")
@pytest.mark.parametrize("shard_rows", [700, 1000, 1999])
def test_answers_do_not_depend_on_where_the_files_are_cut(shard_rows: int) -> None:
    x = vectors(2000)
    whole, report = build_index([x], floor=0.5)
    cut, same = build_index([x[:900], x[900:]], floor=0.5, shard_rows=shard_rows)
    assert same == report
    assert len(cut) == len(whole) == 2000
    for one, expected in zip(cut.search(x[:50], 10), whole.search(x[:50], 10), strict=True):
        np.testing.assert_allclose(one, expected, rtol=1e-6)


def test_rows_of_files_of_equal_length_fill_them(tmp_path: Path) -> None:
    x = vectors(300)
    builder = PatchIndexBuilder(
        tmp_path / "p", 8, 300, x.__getitem__, np.arange(300), IndexConfig(shard_rows=100)
    )
    builder.add(x)
    builder.finish()
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == [
        "00000.faiss",
        "00001.faiss",
        "00002.faiss",
    ]


@pytest.mark.parametrize("shard_rows", [120, 500])
def test_only_allowed_rows_are_found(shard_rows: int) -> None:
    x, queries = vectors(300), vectors(310)[300:]
    allowed = np.random.default_rng(3).random(300) < 0.3
    index, _ = build_index([x], floor=0.9, shard_rows=shard_rows)
    _, rows = index.search(queries, 10, allowed)
    assert np.array_equal(rows, brute_force(x, queries, 10, allowed))


@pytest.mark.usefixtures("small_lists")
def test_a_filter_costs_no_recall() -> None:
    x = vectors(4000)
    index, report = build_index([x], floor=0.9)
    assert report.nprobe
    queries = vectors(200)[::-1]
    # The allowed rows are those least like the mean query: in lists that are not visited at first.
    allowed = np.zeros(len(x), dtype=bool)
    allowed[np.argsort(x @ queries.mean(0))[:200]] = True
    exact = brute_force(x, queries, 10, allowed)
    _, found = index.search(queries, 10, allowed)
    hits = [len(set(e) & set(f)) for e, f in zip(exact.tolist(), found.tolist(), strict=True)]
    assert np.mean(hits) / 10 >= 0.9


def test_fewer_allowed_than_asked_for_leave_places_empty() -> None:
    x = vectors(300)
    allowed = np.zeros(300, dtype=bool)
    allowed[[5, 250]] = True
    index, _ = build_index([x], floor=0.9, shard_rows=120)
    _, rows = index.search(x[:1], 4, allowed)
    assert sorted(rows[0].tolist()) == [-1, -1, 5, 250]


def test_refined_index_finds_what_brute_force_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patch_index_builder, "_FLAT_UP_TO", 1000 * 2)
    monkeypatch.setattr(patch_index_builder, "_SQ8_UP_TO", 1500)
    x = vectors(2000, 64)
    index, report = build_index([x], floor=0.8, shard_rows=900)
    assert report.type.endswith("Refine(RR64,SQ8)")
    cut, _ = build_index([x], floor=0.9, shard_rows=700)
    for one, expected in zip(cut.search(x[:50], 10), index.search(x[:50], 10), strict=True):
        np.testing.assert_allclose(one, expected, rtol=1e-5)
    _, found = index.search(x[:50], 10)
    exact = brute_force(x, x[:50], 10, np.ones(2000, dtype=bool))
    shared = [len(set(a) & set(b)) for a, b in zip(found, exact, strict=True)]
    assert np.mean(shared) / 10 >= 0.8  # one bit a number, on noise
    np.testing.assert_allclose(index.vectors(np.array([1500, 3])), x[[1500, 3]], atol=0.02)


def trial(kind: str, recall: float, per_s: float) -> Trial:
    return Trial(kind, 1000, 32, recall, per_s, 400.0)


def test_the_fastest_type_above_the_floor_is_taken() -> None:
    trials = [trial("slow", 1.0, 10), trial("quick", 0.96, 90), trial("blind", 0.5, 900)]
    assert fastest(trials, 0.95).type == "quick"
    assert fastest(trials, 0.97).type == "slow"
    assert fastest(trials[1:], 0.99).type == "quick"  # of those too blind, the one that sees most


@pytest.mark.parametrize(
    ("rows", "config", "kinds"),
    [
        # 19,999 rows are searched exactly; 20,000 are tried in all types: 2 ** round(7.14) lists.
        (19_999, IndexConfig(), ["Flat"]),
        (20_000, IndexConfig(), ["Flat", "IVF128,SQ8", "IVF128,RaBitQfs,Refine(RR384,SQ8)"]),
        # Beyond 50,000 * 768 numbers, exact search is too slow to try.
        (100_001, IndexConfig(), ["IVF256,SQ8", "IVF256,RaBitQfs,Refine(RR384,SQ8)"]),
        (100_001, IndexConfig(type="flat"), ["Flat"]),
        (500, IndexConfig(type="ivf-sq8"), ["IVF16,SQ8"]),
        # 392 bytes a row in 8 bits, 1,536 exactly.
        (1000, IndexConfig(most_bytes=392_000), ["IVF32,SQ8"]),
        (20_000, IndexConfig(most_bytes=392 * 20_000), ["IVF128,SQ8"]),
    ],
)
def test_types_that_are_possible(rows: int, config: IndexConfig, kinds: list[str]) -> None:
    assert candidates(rows, 384, config) == kinds


def test_an_index_that_no_type_keeps_within_its_bytes_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="at least 0.000365 GiB") as caught:
        candidates(1000, 384, IndexConfig(most_bytes=391_999))
    assert caught.value.field == "build.index_gib"


@pytest.mark.parametrize("shard_rows", [5000, 700])
def test_types_are_tried_on_the_first_rows_and_told(
    shard_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patch_index_builder, "_TRIED_FROM", 2000)
    monkeypatch.setattr(patch_index_builder, "_TRIED_ROWS", 1500)
    x = vectors(2000, 64)
    index, report = build_index([x[:900], x[900:]], floor=0.8, shard_rows=shard_rows)
    assert [t["type"] for t in report.tried] == [
        "Flat", "IVF32,SQ8", "IVF32,RaBitQfs,Refine(RR64,SQ8)"
    ]  # fmt: skip
    assert {t["rows"] for t in report.tried} == {min(shard_rows, 1500)}
    assert (
        report.type
        == max(
            (t for t in report.tried if t["recall_at_10"] >= 0.8), key=lambda t: t["queries_per_s"]
        )["type"]
    )
    exact = report.tried[0]
    assert (exact["nprobe"], exact["recall_at_10"]) == (0, 1.0)
    assert 256 <= exact["bytes_per_vector"] < 257  # 64 float32 numbers, and a header
    _, rows = index.search(x[:50], 1)
    assert (rows[:, 0] == np.arange(50)).mean() > 0.9


def test_all_types_have_the_lists_that_a_type_alone_has() -> None:
    """The lists are trained once for all types."""
    x, config = vectors(3000, 16), IndexConfig(type="ivf-rabitq")
    with TemporaryDirectory() as parent:
        alone = PatchIndexBuilder(
            Path(parent) / "a",
            16,
            3000,
            x.__getitem__,
            np.arange(3000),
            config,
        )
        patch = pytest.MonkeyPatch()
        with patch.context() as context:
            context.setattr(patch_index_builder, "_TRIED_FROM", 1)
            several = PatchIndexBuilder(
                Path(parent) / "b", 16, 3000, x.__getitem__, np.arange(3000)
            )
    lists = [
        faiss.extract_index_ivf(filling.shard).quantizer.reconstruct_n(0, 64)
        for filling in (*alone._fillings, *several._fillings[1:])
    ]
    assert len(lists) == 3
    assert all(np.array_equal(found, lists[0]) for found in lists)

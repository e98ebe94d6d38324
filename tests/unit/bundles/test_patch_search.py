"""Search over patches: by vector and by code, among those allowed, near-duplicates together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.worlds import tiny as worlds
from vision_sae.bundles import patch_search
from vision_sae.bundles.build import build
from vision_sae.bundles.patch_queries import DEEPEST, Query, mean_code, mean_direction, nearest
from vision_sae.bundles.patch_search import FiringPatches, by_code, by_vector, collapsed, vector_of
from vision_sae.bundles.read import Bundle, read_bundle
from vision_sae.config import BuildConfig
from vision_sae.dictionaries.protocol import to_dense
from vision_sae.vectors import normalised

DIM, IMAGES, PATCHES = 16, 30, 4


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """30 pictures of 4 patches; of each picture, patches 2 and 3 are nearly the same."""
    root: Path = tmp_path_factory.mktemp("patches")
    random = np.random.default_rng(0)
    vectors = random.standard_normal((IMAGES, PATCHES, DIM))
    vectors[:, 3] = vectors[:, 2] + 0.01 * random.standard_normal((IMAGES, DIM))
    store = worlds.write_store(root / "store", [vectors])
    worlds.write_dictionary(root / "d", worlds.identity_sae(DIM, 5), store)
    build(store, root / "d", root / "bundle", BuildConfig(), progress=False)
    return read_bundle(root / "bundle")


def dense(bundle: Bundle) -> np.ndarray:
    """The codes of all patches (N, DIM)."""
    made = np.zeros((IMAGES * PATCHES, DIM))
    for patch in range(len(made)):
        features, values = bundle.codes.row(patch)
        made[patch, features] = values
    return made


def test_by_vector_is_the_order_of_cosines(bundle: Bundle) -> None:
    query = np.random.default_rng(1).standard_normal(DIM).astype(np.float32)
    vectors = np.stack([vector_of(bundle, patch) for patch in range(IMAGES * PATCHES)])
    cosines = vectors @ normalised(query[None])[0]
    hits = by_vector(bundle, query, 7)
    assert [hit.patch for hit in hits] == np.argsort(-cosines)[:7].tolist()
    assert [hit.score for hit in hits] == pytest.approx(
        np.sort(cosines)[::-1][:7].tolist(), abs=1e-5
    )


@pytest.mark.parametrize("exact_up_to", [0, 10**6], ids=["in the index", "one by one"])
def test_a_filter_finds_what_is_best_of_the_allowed(
    bundle: Bundle, exact_up_to: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patch_search, "_EXACT_UP_TO", exact_up_to)
    query = np.random.default_rng(2).standard_normal(DIM).astype(np.float32)
    allowed = np.zeros(IMAGES * PATCHES, dtype=bool)
    allowed[1::7] = True
    everything = [hit.patch for hit in by_vector(bundle, query, IMAGES * PATCHES)]
    expected = [patch for patch in everything if allowed[patch]][:5]
    assert [hit.patch for hit in by_vector(bundle, query, 5, allowed)] == expected
    assert len(by_vector(bundle, query, IMAGES * PATCHES, allowed)) == allowed.sum()


def test_by_code_is_the_order_of_cosines_of_codes(bundle: Bundle) -> None:
    query = {2: 1.5, 7: 0.5, 11: -1.0}
    vector = np.zeros(DIM)
    vector[list(query)] = list(query.values())
    codes = dense(bundle)
    cosines = codes @ vector / (np.linalg.norm(codes, axis=1) * np.linalg.norm(vector))
    hits = by_code(bundle, query, 10)
    assert [hit.score for hit in hits] == pytest.approx(
        np.sort(cosines)[::-1][:10].tolist(), abs=1e-3
    )
    assert hits[0].patch == int(cosines.argmax())


def test_a_code_finds_its_own_patch(bundle: Bundle) -> None:
    features, values = bundle.codes.row(41)
    code = dict(zip(features.tolist(), values.astype(float).tolist(), strict=True))
    best = by_code(bundle, code, 1)[0]
    assert (best.patch, best.score) == (41, pytest.approx(1, abs=1e-6))


def test_codes_are_filtered_too(bundle: Bundle) -> None:
    allowed = np.zeros(IMAGES * PATCHES, dtype=bool)
    allowed[:20] = True
    assert {hit.patch for hit in by_code(bundle, {3: 1.0}, 99, allowed)} == set(
        np.flatnonzero(dense(bundle)[:20, 3])
    )


def test_firing_patches_come_strongest_first(bundle: Bundle) -> None:
    activations = dense(bundle)[:, 4]
    firing = FiringPatches(bundle, 4)
    assert len(firing) == int((activations > 0).sum())
    assert [hit.score for hit in firing[:3]] == np.sort(activations)[::-1][:3].tolist()
    assert firing[0] == firing[:1][0]
    allowed = activations < 1
    assert len(FiringPatches(bundle, 4, allowed)) == int(((activations > 0) & allowed).sum())


def test_near_duplicates_of_one_picture_are_shown_once(bundle: Bundle) -> None:
    query = vector_of(bundle, 2)  # whose twin is patch 3 of the same picture
    hits = by_vector(bundle, query, IMAGES * PATCHES)
    assert {hits[0].patch, hits[1].patch} == {2, 3}
    kept = collapsed(bundle, hits)
    assert len(kept) == IMAGES * 3  # each picture has three patches that differ
    assert (kept[0].patch, kept[0].collapsed) == (2, 1)
    assert sum(hit.collapsed for hit in kept) == IMAGES
    assert collapsed(bundle, []) == []


def test_a_mean_code_and_a_mean_direction(bundle: Bundle) -> None:
    vectors = np.random.default_rng(0).normal(size=(5, bundle.dictionary.dim)).astype(np.float32)
    dense = to_dense(bundle.dictionary.encode(torch.from_numpy(vectors)), bundle.dictionary.width)
    expected = dense.double().mean(0)
    code = mean_code(bundle.dictionary, vectors)
    assert list(code) == expected.nonzero()[:, 0].tolist()
    assert list(code.values()) == pytest.approx(expected[list(code)].tolist())
    centred = vectors - bundle.site_mean
    units = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    np.testing.assert_allclose(mean_direction(bundle, vectors), units.mean(0), atol=1e-6)


def test_a_query_is_searched_in_its_own_space(bundle: Bundle) -> None:
    vector, code = Query(vector=vector_of(bundle, 3)), Query(code={0: 1.0})
    assert (vector.space, code.space, Query(aligned=np.ones(2, np.float32)).space) == (
        *("vector", "code", "text"),
    )
    recall = bundle.manifest["patch_index"]["recall_at_10"]
    assert nearest(bundle, vector) == (by_vector(bundle, vector.vector, DEEPEST), recall)
    assert nearest(bundle, code) == (by_code(bundle, {0: 1.0}, DEEPEST), 1.0)

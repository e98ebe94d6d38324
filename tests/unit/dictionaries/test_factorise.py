from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.worlds.tiny import SITE, write_store
from vision_sae.activations.store import ActivationStore
from vision_sae.bundles.codes import CodesBuilder, by_feature
from vision_sae.dictionaries.architectures import ARCHITECTURES, read_weights
from vision_sae.dictionaries.factorise import factorise
from vision_sae.dictionaries.metrics import evaluate
from vision_sae.dictionaries.protocol import Dictionary, to_dense
from vision_sae.errors import InvalidInputError

FITTED = [architecture.name for architecture in ARCHITECTURES if architecture.fit]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    """240 non-negative vectors of 6 dimensions, mixed from 4 parts, in two shards."""
    random = np.random.default_rng(0)
    codes = random.random((240, 4)) * (random.random((240, 4)) < 0.5)
    x = (codes @ random.random((4, 6)) + 0.05 * random.random((240, 6))).reshape(60, 4, 6)
    return write_store(tmp_path_factory.mktemp("factorise") / "store", [x[:40], x[40:]])


def vectors(store: ActivationStore) -> torch.Tensor:
    return torch.cat(list(store.batches(SITE, 64)))


@pytest.mark.parametrize(
    ("architecture", "width"),
    [("neurons", 6), ("pca", 12), ("nmf", 6), ("semi_nmf", 6), ("kmeans", 6)],
)
def test_width_that_is_not_given(store: ActivationStore, architecture: str, width: int) -> None:
    dictionary = factorise(store, architecture, progress=False)
    assert isinstance(dictionary, Dictionary)
    assert (dictionary.architecture, dictionary.dim, dictionary.width) == (architecture, 6, width)


@pytest.mark.parametrize(
    ("architecture", "width", "floor"),
    [
        ("neurons", 12, 1),
        ("pca", 8, 0.95),
        ("nmf", 4, 0.9),
        ("semi_nmf", 4, 0.9),
        ("kmeans", 9, 0.5),
    ],
)
def test_width_is_kept_and_the_store_explained(
    store: ActivationStore, architecture: str, width: int, floor: float
) -> None:
    dictionary = factorise(store, architecture, site=SITE, width=width, progress=False)
    assert dictionary.width == width
    assert evaluate(dictionary, store.batches(SITE, 100)).explained_variance >= floor


@pytest.mark.parametrize("architecture", FITTED)
def test_k_bounds_the_features_of_a_row(store: ActivationStore, architecture: str) -> None:
    dictionary = factorise(store, architecture, k=2, progress=False)
    counts = (dictionary.encode(vectors(store)).values > 0).sum(1)
    assert counts.max() == (1 if architecture == "kmeans" else 2)


@pytest.mark.parametrize("architecture", FITTED)
def test_codes_hold_what_the_protocol_says(store: ActivationStore, architecture: str) -> None:
    codes = factorise(store, architecture, progress=False).encode(vectors(store))
    assert (codes.indices.dtype, codes.values.dtype) == (torch.int64, torch.float32)
    assert (codes.values >= 0).all()
    for indices, values in zip(*codes, strict=True):
        fires = values > 0
        assert not (fires.int().diff() > 0).any()  # those that fire stand first
        assert (indices[fires].diff() > 0).all()


@pytest.mark.parametrize("architecture", FITTED)
def test_decoding_is_the_decoder_and_the_bias(store: ActivationStore, architecture: str) -> None:
    dictionary = factorise(store, architecture, progress=False)
    codes = dictionary.encode(vectors(store))
    expected = to_dense(codes, dictionary.width) @ dictionary.decoder + dictionary.bias
    torch.testing.assert_close(dictionary.decode(codes), expected)


@pytest.mark.parametrize("architecture", FITTED)
def test_codes_can_be_built_into_a_bundle(store: ActivationStore, architecture: str) -> None:
    dictionary = factorise(store, architecture, k=3, progress=False)
    builder = CodesBuilder()
    for batch in store.batches(SITE, 50):
        builder.add(dictionary.encode(batch))
    rows = builder.by_patch()
    dense = to_dense(dictionary.encode(vectors(store)), dictionary.width).numpy()
    built = np.zeros_like(dense)
    for patch in range(len(dense)):
        features, values = rows.row(patch)
        built[patch, features] = values
    np.testing.assert_allclose(built, dense, rtol=1e-3, atol=1e-6)  # float16
    postings = by_feature(rows, dictionary.width)
    np.testing.assert_array_equal(np.diff(postings.indptr), (built > 0).sum(0))


@pytest.mark.parametrize("architecture", FITTED)
def test_weights_are_loaded_by_their_name(
    store: ActivationStore, architecture: str, tmp_path: Path
) -> None:
    dictionary = factorise(store, architecture, k=2, progress=False)
    described = dictionary.save(tmp_path)
    back = read_weights(tmp_path, described)
    assert type(back) is type(dictionary)
    assert back.save(tmp_path) == described


@pytest.mark.parametrize("architecture", FITTED)
def test_same_seed_same_dictionary(store: ActivationStore, architecture: str) -> None:
    a, b = (factorise(store, architecture, rows=100, seed=1, progress=False) for _ in range(2))
    assert torch.equal(a.decoder, b.decoder)


@pytest.mark.parametrize("architecture", ["nmf", "semi_nmf", "kmeans"])
def test_rows_and_seed_choose_the_sample(store: ActivationStore, architecture: str) -> None:
    a, b = (factorise(store, architecture, rows=50, seed=s, progress=False) for s in (1, 2))
    assert not torch.equal(a.decoder, b.decoder)


@pytest.mark.parametrize("width", [5, 18])
def test_neurons_of_another_number_are_refused(store: ActivationStore, width: int) -> None:
    with pytest.raises(InvalidInputError, match="6 neurons, or 12 with both signs"):
        factorise(store, "neurons", width=width, progress=False)


@pytest.mark.parametrize("width", [0, 7, 14])
def test_pca_of_an_impossible_width_is_refused(store: ActivationStore, width: int) -> None:
    with pytest.raises(InvalidInputError, match="even, from 2 to 12"):
        factorise(store, "pca", width=width, progress=False)


def test_unknown_factorisation_is_refused_and_says_which_there_are(store: ActivationStore) -> None:
    with pytest.raises(InvalidInputError, match=r"'ica'.*kmeans, neurons, nmf, pca, semi_nmf"):
        factorise(store, "ica", progress=False)


def test_unknown_site_is_refused(store: ActivationStore) -> None:
    with pytest.raises(InvalidInputError, match=SITE):
        factorise(store, "pca", site="blocks.9.update", progress=False)

"""Store + dictionary -> bundle. The dictionary is the neuron basis: feature i is dimension i."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.worlds.tiny import SITE, identity_sae, write_dictionary, write_store
from vision_sae.activations.store import ActivationStore
from vision_sae.bundles.build import build, current_bundle
from vision_sae.bundles.patch_index_builder import PatchIndexBuilder
from vision_sae.bundles.publish import republish
from vision_sae.bundles.read import Bundle, read_bundle
from vision_sae.config import BuildConfig
from vision_sae.dictionaries.ensemble import Bagging
from vision_sae.dictionaries.kinds.topk import TopKSae
from vision_sae.dictionaries.metrics import evaluate
from vision_sae.errors import (
    CorruptArtifactError,
    FeatureNotFoundError,
    MismatchError,
    NotFoundError,
    RecallTooLowError,
)
from vision_sae.files import sha256_file
from vision_sae.vectors import normalised

CONFIG = BuildConfig(exemplars=3, quantile_exemplars=2)
DIM, IMAGES = 6, 12


def site_vectors() -> np.ndarray:
    vectors = np.random.default_rng(0).normal(size=(IMAGES, 4, DIM)).astype(np.float16)
    vectors[:, :, 5] = -1  # feature 5 never fires
    return vectors.astype(np.float32)


@pytest.fixture
def store(tmp_path: Path) -> ActivationStore:
    vectors = site_vectors()
    return write_store(tmp_path / "store", [vectors[:7], vectors[7:]])


@pytest.fixture
def dictionary(tmp_path: Path, store: ActivationStore) -> Path:
    return write_dictionary(tmp_path / "dictionary", identity_sae(DIM, 3), store)


@pytest.fixture
def bundle(tmp_path: Path, store: ActivationStore, dictionary: Path) -> Bundle:
    return build(store, dictionary, tmp_path / "bundle", CONFIG, progress=False)


def dense_codes() -> np.ndarray:
    """The codes (patches, F) by definition: the three largest dimensions, where positive."""
    rows = site_vectors().reshape(-1, DIM)
    kept = np.argsort(-rows, axis=1)[:, :3]
    out = np.zeros_like(rows)
    np.put_along_axis(out, kept, np.take_along_axis(rows, kept, axis=1).clip(0), axis=1)
    return out


def test_codes_are_those_of_the_dictionary(bundle: Bundle) -> None:
    for patch, expected in enumerate(dense_codes()):
        indices, values = bundle.codes.row(patch)
        assert indices.tolist() == np.flatnonzero(expected).tolist()
        assert values.tolist() == expected[expected > 0].tolist()


def test_postings_are_the_same_codes_by_feature(bundle: Bundle) -> None:
    for feature, column in enumerate(dense_codes().T):
        patches, values = bundle.postings.row(feature)
        assert sorted(patches.tolist()) == np.flatnonzero(column).tolist()
        assert values.tolist() == sorted(column[column > 0].tolist(), reverse=True)


def test_statistics_are_over_the_non_zero_activations(bundle: Bundle) -> None:
    column = dense_codes()[:, 2]
    fired = column[column > 0]
    assert bundle.statistics.count[2] == len(fired)
    assert bundle.statistics.mean[2] == pytest.approx(fired.mean(), rel=1e-5)
    assert bundle.statistics.max[2] == fired.max()


def test_image_counts_are_images_in_which_a_feature_fires(bundle: Bundle) -> None:
    fires = (dense_codes().reshape(IMAGES, 4, DIM) > 0).any(axis=1)
    assert bundle.image_counts.tolist() == fires.sum(axis=0).tolist()


def test_strongest_exemplars_are_the_images_of_largest_maximum(bundle: Bundle) -> None:
    maxima = dense_codes().reshape(IMAGES, 4, DIM).max(axis=1)[:, 1]
    top, _ = bundle.exemplars(1)
    assert [e.image for e in top] == np.argsort(-maxima)[:3].tolist()
    assert [e.activation for e in top] == np.sort(maxima)[::-1][:3].tolist()


def test_masks_hold_patches_from_the_median_of_the_non_zero_values_on(bundle: Bundle) -> None:
    column = dense_codes()[:, 1]
    median = np.quantile(column[column > 0], 0.5)
    for exemplar in sum(bundle.exemplars(1), []):
        of_image = column.reshape(IMAGES, 2, 2)[exemplar.image]
        expected = of_image >= median
        expected.flat[exemplar.patch % 4] = True
        assert exemplar.mask.tolist() == expected.tolist()


def test_further_exemplars_are_other_images(bundle: Bundle) -> None:
    top, rest = bundle.exemplars(1)
    assert (len(top), len(rest)) == (3, 2)
    assert len({e.image for e in top + rest}) == 5


def test_silent_feature_has_no_exemplars(bundle: Bundle) -> None:
    assert bundle.exemplars(5) == ([], [])


@pytest.mark.parametrize("feature", [-1, DIM, 10**9])
def test_feature_outside_the_dictionary_is_refused(bundle: Bundle, feature: int) -> None:
    with pytest.raises(FeatureNotFoundError, match="features 0 to 5"):
        bundle.exemplars(feature)


def test_patch_index_finds_nearest_centred_vectors(bundle: Bundle) -> None:
    rows = site_vectors().reshape(-1, DIM)
    x = normalised(rows, rows.mean(axis=0))
    _, found = bundle.patch_index.search(x[:5], 4)
    assert np.array_equal(found, np.argsort(-(x[:5] @ x.T), axis=1)[:, :4])


def test_site_mean_is_that_of_all_rows(bundle: Bundle) -> None:
    rows = site_vectors().reshape(-1, DIM)
    np.testing.assert_allclose(bundle.site_mean, rows.mean(axis=0), rtol=1e-5, atol=1e-6)


def test_recorded_metrics_are_those_of_the_dictionary_on_the_store(
    bundle: Bundle, store: ActivationStore
) -> None:
    expected = evaluate(identity_sae(DIM, 3), store.batches(SITE, 5))._asdict()
    assert bundle.manifest["metrics"]["build"] == pytest.approx(expected)


def test_manifest_binds_model_site_data_and_recall(bundle: Bundle, store: ActivationStore) -> None:
    manifest = bundle.manifest
    assert manifest["model"] == store.manifest["model"]
    assert manifest["site"] == SITE
    assert manifest["data_sha256"] == store.manifest["data_sha256"]
    assert manifest["patch_index"]["recall_at_10"] == 1
    assert manifest["patch_index"]["rows"] == 4 * IMAGES


def test_images_embeddings_and_thumbnails_follow_the_store(
    bundle: Bundle, store: ActivationStore
) -> None:
    assert bundle.images == store.images
    assert np.array_equal(bundle.embeddings, store.embeddings)
    assert list(bundle.thumbnails) == list(store.thumbnails())


def test_box_of_a_patch_is_in_its_image(bundle: Bundle) -> None:
    # 16 x 16 pictures in 2 x 2 patches: patch 3 of any image is its lower right quarter.
    assert bundle.box(4 * 2 + 3) == (8, 8, 16, 16)


def test_no_descriptions_before_describe(bundle: Bundle) -> None:
    assert bundle.descriptions == {}


def test_open_bundle_stays_as_it_was_when_another_is_published_in_its_place(
    bundle: Bundle, store: ActivationStore, dictionary: Path
) -> None:
    opened = read_bundle(bundle.path)
    before = (bundle.codes.values.tolist(), bundle.manifest_sha256, bundle.exemplars(1)[0][0].patch)
    negated = TopKSae(
        w_enc=-torch.eye(DIM),
        b_enc=torch.zeros(DIM),
        w_dec=-torch.eye(DIM),
        b_dec=torch.zeros(DIM),
        k=3,
    )
    write_dictionary(dictionary, negated, store)
    build(store, dictionary, bundle.path, CONFIG, progress=False, overwrite=True)
    after = (opened.codes.values.tolist(), opened.manifest_sha256, opened.exemplars(1)[0][0].patch)
    assert after == before
    assert torch.equal(opened.dictionary.decoder, torch.eye(DIM))


def test_bundle_is_republished_where_there_are_no_hard_links(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_paths: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")  # as FAT and some mounts do

    monkeypatch.setattr(os, "link", refuse)
    again = republish(bundle, bundle.path, {"note": "new"}, {"note.txt": b"new"})
    added = again.manifest["files"].pop("note.txt")
    assert again.manifest["files"] == bundle.manifest["files"]  # of the copies
    assert (added["bytes"], again.manifest["note"]) == (3, "new")


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of all files that have been hashed."""
    names: list[str] = []

    def noting(path: Path) -> str:
        names.append(path.name)
        return sha256_file(path)

    for module in ("files", "bundles.read", "bundles.publish"):
        monkeypatch.setattr(f"vision_sae.{module}.sha256_file", noting)
    return names


def test_files_of_a_bundle_are_hashed_once(
    hashed: list[str], store: ActivationStore, dictionary: Path, tmp_path: Path
) -> None:
    built = build(store, dictionary, tmp_path / "bundle", CONFIG, progress=False)
    assert hashed.count("embeddings.npy") == hashed.count("00000.faiss") == 1
    republish(built, built.path, {"note": "new"}, {"note.txt": b"new"})
    assert hashed.count("note.txt") == 1
    assert hashed.count("embeddings.npy") == hashed.count("00000.faiss") == 1
    build(store, dictionary, tmp_path / "bundle", CONFIG, progress=False)  # there already
    assert hashed.count("embeddings.npy") == 2


def test_bundle_of_an_ensemble_is_republished(store: ActivationStore, tmp_path: Path) -> None:
    bagging = Bagging([identity_sae(DIM, 3), identity_sae(DIM, 2)])
    path = write_dictionary(tmp_path / "bagging", bagging, store)
    built = build(store, path, tmp_path / "bundle", CONFIG, progress=False)
    again = republish(built, built.path, {}, {"note.txt": b"new"})
    assert again.dictionary_sha256 == built.dictionary_sha256
    read_bundle(built.path)  # checks every hash


def test_bundle_cannot_be_changed(bundle: Bundle) -> None:
    with pytest.raises(FrozenInstanceError):
        bundle.deleted = None  # type: ignore[misc]


def test_missing_bundle_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="vision-sae build"):
        read_bundle(tmp_path / "nowhere")


def test_corrupt_file_is_refused_by_name_at_opening(bundle: Bundle) -> None:
    for name in bundle.manifest["files"]:
        path = bundle.path / name
        good = path.read_bytes()
        path.write_bytes(bytes([good[0] ^ 1]) + good[1:])
        with pytest.raises(CorruptArtifactError, match=name):
            read_bundle(bundle.path)
        path.write_bytes(good)


@pytest.mark.parametrize("change", [{"version": 3}, {"format": "vision_sae.dictionary"}])
def test_other_format_or_version_is_refused(bundle: Bundle, change: dict[str, object]) -> None:
    (bundle.path / "manifest.json").write_text(json.dumps(bundle.manifest | change))
    with pytest.raises(
        CorruptArtifactError, match="reads .* version 2; name another, or run `vision-sae build`"
    ):
        read_bundle(bundle.path)


@pytest.mark.parametrize("key", ["weights_sha256", "preprocessing", "grid"])
def test_dictionary_of_another_model_is_refused_by_name(
    store: ActivationStore, tmp_path: Path, key: str
) -> None:
    other = store.manifest["model"] | {key: {"other": 1}}
    path = write_dictionary(tmp_path / "d", identity_sae(DIM, 3), store, model=other)
    with pytest.raises(MismatchError, match=key) as caught:
        build(store, path, tmp_path / "bundle", CONFIG, progress=False)
    assert caught.value.field == key


def test_dictionary_of_another_site_is_refused_by_name(
    store: ActivationStore, tmp_path: Path
) -> None:
    path = write_dictionary(tmp_path / "d", identity_sae(DIM, 3), store, site="blocks.2.mlp")
    with pytest.raises(MismatchError, match=rf"blocks\.2\.mlp.*{SITE}"):
        build(store, path, tmp_path / "bundle", CONFIG, progress=False)


def test_recall_under_the_floor_publishes_nothing(
    store: ActivationStore, dictionary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def miss(*_args: object) -> object:
        raise RecallTooLowError("recall@10 0.5")

    monkeypatch.setattr(PatchIndexBuilder, "finish", miss)
    with pytest.raises(RecallTooLowError):
        build(store, dictionary, tmp_path / "bundle", CONFIG, progress=False)
    assert not (tmp_path / "bundle").exists()


def test_floor_of_the_configuration_reaches_the_index(
    store: ActivationStore, dictionary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PatchIndexBuilder, "_recall", lambda *_: 0.8)
    with pytest.raises(RecallTooLowError, match="below the floor 0.85"):
        config = CONFIG.model_copy(update={"recall_floor": 0.85})
        build(store, dictionary, tmp_path / "bundle", config, progress=False)


def test_bundle_is_current_until_something_changes(
    bundle: Bundle, store: ActivationStore, dictionary: Path, tmp_path: Path
) -> None:
    other = TopKSae(
        w_enc=torch.eye(DIM),
        b_enc=torch.ones(DIM),
        w_dec=torch.eye(DIM),
        b_dec=torch.zeros(DIM),
        k=3,
    )
    retrained = write_dictionary(tmp_path / "retrained", other, store)
    changed = CONFIG.model_copy(update={"exemplars": 4})
    manifest = bundle.manifest | {"code_version": "older"}
    assert current_bundle(bundle.path, store, dictionary, CONFIG)
    assert not current_bundle(bundle.path, store, retrained, CONFIG)
    assert not current_bundle(bundle.path, store, dictionary, changed)
    assert not current_bundle(tmp_path / "nowhere", store, dictionary, CONFIG)
    (bundle.path / "manifest.json").write_text(json.dumps(manifest))
    assert not current_bundle(bundle.path, store, dictionary, CONFIG)

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.worlds.tiny import SITE, write_store
from vision_sae.activations.store import ActivationStore
from vision_sae.errors import CorruptArtifactError, InvalidInputError, NotFoundError

VECTORS = np.arange(5 * 4 * 3, dtype=np.float32).reshape(5, 4, 3)  # 5 images, 4 patches, D = 3


@pytest.fixture
def store(tmp_path: Path) -> ActivationStore:
    return write_store(tmp_path / "store", [VECTORS[:2], VECTORS[2:]])


def test_rows_are_images_times_patches(store: ActivationStore) -> None:
    assert store.rows == 20


def test_arrays_come_shard_by_shard(store: ActivationStore) -> None:
    assert [tuple(a.shape) for a in store.arrays(SITE)] == [(2, 4, 3), (3, 4, 3)]


@pytest.mark.parametrize("size", [1, 3, 8, 100])
def test_batches_hold_all_rows_in_order(store: ActivationStore, size: int) -> None:
    batches = list(store.batches(SITE, size))
    assert max(map(len, batches)) <= size
    assert torch.equal(torch.cat(batches), torch.from_numpy(VECTORS.reshape(20, 3)))


@given(rows=st.lists(st.integers(0, 19)))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_are_taken_by_number_in_the_order_asked(
    store: ActivationStore, rows: list[int]
) -> None:
    taken = store.take(SITE, np.array(rows, dtype=np.int64))
    assert torch.equal(taken, torch.from_numpy(VECTORS.reshape(20, 3)[rows]))


def test_mean_is_that_of_all_rows(store: ActivationStore) -> None:
    # Dimension d of row r is 3 r + d, and the mean row number is 9.5.
    assert store.mean(SITE).tolist() == [28.5, 29.5, 30.5]


def test_images_and_embeddings_run_over_all_shards(store: ActivationStore) -> None:
    assert [r.id for r in store.images] == [f"{i}.png" for i in range(5)]
    assert store.embeddings[:, 0].tolist() == [0, 1, 2, 3, 4]


def test_only_site_may_go_unnamed(store: ActivationStore) -> None:
    assert store.site(None) == SITE


def test_unknown_site_is_refused_and_says_which_there_are(store: ActivationStore) -> None:
    with pytest.raises(InvalidInputError, match=SITE):
        store.site("blocks.7.update")


def test_missing_store_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="vision-sae harvest"):
        ActivationStore(tmp_path / "nowhere")


def test_directory_without_a_manifest_is_not_a_finished_store(store: ActivationStore) -> None:
    (store.path / "manifest.json").unlink()
    with pytest.raises(NotFoundError, match="not a finished"):
        ActivationStore(store.path)


@pytest.mark.parametrize("change", [{"version": 2}, {"format": "something.else"}])
def test_unknown_format_or_version_is_refused(
    store: ActivationStore, change: dict[str, object]
) -> None:
    manifest = store.manifest | change
    (store.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CorruptArtifactError, match=str(next(iter(change.values())))):
        ActivationStore(store.path)


def test_corrupt_shard_is_refused_by_name(store: ActivationStore) -> None:
    path = store.shards[1] / f"{SITE}.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # a single bit
    path.write_bytes(data)
    with pytest.raises(CorruptArtifactError, match=rf"00001/{SITE}\.npy"):
        ActivationStore(store.path).verify()


def test_missing_shard_file_is_refused_by_name(store: ActivationStore) -> None:
    (store.shards[0] / "images.jsonl").unlink()
    with pytest.raises(CorruptArtifactError, match=r"00000/images\.jsonl is missing"):
        store.verify()


def test_reading_never_changes_the_files(store: ActivationStore) -> None:
    next(store.arrays(SITE)).zero_()  # the mapping is private to the reader
    store.verify()

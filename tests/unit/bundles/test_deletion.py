"""Pictures taken out of a bundle leave nothing of them to be found."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.worlds import tiny as worlds
from vision_sae.bundles import patch_search
from vision_sae.bundles.build import build
from vision_sae.bundles.deletion import delete_images
from vision_sae.bundles.patch_search import FiringPatches, by_code, by_vector, vector_of
from vision_sae.bundles.read import Bundle, read_bundle
from vision_sae.cli import app
from vision_sae.config import BuildConfig
from vision_sae.errors import InvalidInputError, NotFoundError

DIM, IMAGES, PATCHES = 8, 20, 4
GONE = (3, 11)
CONFIG = BuildConfig(exemplars=6, quantile_exemplars=2)


def vectors() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((IMAGES, PATCHES, DIM))


def made(root: Path, data: np.ndarray) -> Bundle:
    captions = [f"picture {i}" for i in range(len(data))]
    store = worlds.write_store(root / "store", [data], captions=captions)
    worlds.write_dictionary(root / "d", worlds.identity_sae(DIM, 3), store)
    return build(store, root / "d", root / "bundle", CONFIG, progress=False)


@pytest.fixture
def whole(tmp_path: Path) -> Bundle:
    return made(tmp_path, vectors())


@pytest.fixture
def left(whole: Bundle) -> Bundle:
    return delete_images(whole.path, [whole.images[row].id for row in GONE])


@pytest.mark.parametrize("exact_up_to", [0, 10**6], ids=["in the index", "one by one"])
def test_their_patches_are_not_found(
    whole: Bundle, left: Bundle, exact_up_to: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patch_search, "_EXACT_UP_TO", exact_up_to)
    query = vector_of(whole, GONE[0] * PATCHES)
    everything = [hit.patch for hit in by_vector(whole, query, IMAGES * PATCHES)]
    expected = [patch for patch in everything if patch // PATCHES not in GONE]
    assert [hit.patch for hit in by_vector(left, query, IMAGES * PATCHES)] == expected
    for feature in range(DIM):
        found = {hit.patch // PATCHES for hit in FiringPatches(left, feature)}
        found |= {hit.patch // PATCHES for hit in by_code(left, {feature: 1.0}, 999)}
        assert found.isdisjoint(GONE)


def test_measurements_are_those_of_the_other_pictures(left: Bundle, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = made(tmp_path / "other", np.delete(vectors(), GONE, axis=0))
    for name, expected in other.statistics._asdict().items():
        np.testing.assert_array_equal(getattr(left.statistics, name), expected)
    rows = np.delete(np.arange(IMAGES), GONE)  # row of each picture that is left
    for feature in range(DIM):
        for ours, theirs in zip(left.exemplars(feature), other.exemplars(feature), strict=True):
            assert [e.image for e in ours] == [rows[e.image] for e in theirs]
            assert [e.activation for e in ours] == [e.activation for e in theirs]


def test_nothing_tells_of_them_any_more(whole: Bundle, left: Bundle) -> None:
    for row, (before, after) in enumerate(zip(whole.images, left.images, strict=True)):
        if row not in GONE:
            assert after == before
            assert left.thumbnails[row] == whole.thumbnails[row]
            continue
        assert (after.id, after.caption, after.tags) == (f"deleted-{row:06d}", "", ())
        grey = np.asarray(Image.open(io.BytesIO(left.thumbnails[row])))
        assert np.ptp(grey) == 0
        assert not left.embeddings[row].any()
    assert whole.images[GONE[0]].id not in left.image_rows


def test_more_can_be_deleted_later(left: Bundle) -> None:
    again = delete_images(left.path, [left.images[0].id])
    assert again.deleted is not None
    assert np.flatnonzero(again.deleted).tolist() == [0, *GONE]
    assert again.manifest["deleted"] == 3


def test_what_cannot_be_deleted_changes_nothing(whole: Bundle) -> None:
    with pytest.raises(NotFoundError, match="no picture 'none'"):
        delete_images(whole.path, [whole.images[0].id, "none"])
    with pytest.raises(InvalidInputError, match="no picture would be left"):
        delete_images(whole.path, [image.id for image in whole.images])
    assert read_bundle(whole.path).manifest_sha256 == whole.manifest_sha256


def test_command(whole: Bundle) -> None:
    asked = ["delete", str(whole.path), "--image", whole.images[5].id]
    done = CliRunner().invoke(app, asked)
    assert done.stdout == f"{whole.path}: 1 pictures deleted in all\n"
    deleted = read_bundle(whole.path).deleted
    assert deleted is not None
    assert np.flatnonzero(deleted).tolist() == [5]

"""What describers and scorers see of a unit, from a bundle and from plain arrays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.worlds.tiny import GRID, PREPROCESSING, identity_sae, write_dictionary, write_store
from vision_sae.activations.store import ImageRecord
from vision_sae.bundles.build import build
from vision_sae.config import BuildConfig, DescribeConfig
from vision_sae.descriptions.describe import describe_bundle
from vision_sae.evidence.arrays import ArrayEvidence
from vision_sae.evidence.bundle import BundleEvidence
from vision_sae.evidence.protocol import FIRINGS, Evidence, silent, split

# Feature 0 in six pictures of four patches; 0 is silence.
ACTIVATIONS = np.array(
    [[0, 0, 0, 0], [1, 4, 0, 2], [0, 0, 8, 0], [3, 0, 0, 3], [0, 0, 0, 0], [0, 0, 0, 0]],
    dtype=np.float32,
)


def bundle_evidence(directory: Path, sources: tuple[str, ...] = ()) -> BundleEvidence:
    """A bundle in which only feature 0 fires, with `ACTIVATIONS`."""
    vectors = np.zeros((6, 4, 3), dtype=np.float32)
    vectors[:, :, 0] = ACTIVATIONS
    store = write_store(directory / "store", [vectors], sources=sources)
    dictionary = write_dictionary(directory / "d", identity_sae(3, 3), store)
    config = BuildConfig(mask_quantile=0.5)
    return BundleEvidence(build(store, dictionary, directory / "b", config, progress=False))


def array_evidence() -> ArrayEvidence:
    """The same as plain arrays."""
    firing = [2, 1, 3]
    return ArrayEvidence(
        name="models/tiny/sites/blocks.0.mlp",
        identity="i" * 64,
        data_sha256="d" * 64,
        site="blocks.0.mlp",
        images=[ImageRecord(f"{i}.png", 16, 16, "", ()) for i in range(6)],
        grid=GRID,
        preprocessing=PREPROCESSING,
        thumbnails=[bytes([i]) for i in range(6)],
        embeddings=np.array([[-2, -1], [1, 0], [1, 0], [1, 0], [-2, 0], [1, 1]], dtype=np.float32),
        all_peaks=ACTIVATIONS.max(1)[None],
        firing_images=np.array([[*firing, -1]]),
        maps=np.concatenate([ACTIVATIONS[firing], np.zeros((1, 4))])[None].astype(np.float16),
        thresholds=np.array([3.0]),
    )


@pytest.fixture(params=["bundle", "arrays"])
def evidence(request: pytest.FixtureRequest, tmp_path: Path) -> Evidence:
    return bundle_evidence(tmp_path) if request.param == "bundle" else array_evidence()


def test_peaks_are_the_strongest_activation_in_each_picture(evidence: Evidence) -> None:
    assert evidence.peaks(0).tolist() == [0, 4, 8, 3, 0, 0]


def test_firings_come_strongest_first_with_their_maps(evidence: Evidence) -> None:
    firings = evidence.firings(0)
    assert [(f.image, f.patch, f.activation) for f in firings] == [
        (2, 10, 8),
        (1, 5, 4),
        (3, 12, 3),
    ]
    assert firings[1].map.tolist() == [[1, 4], [0, 2]]


def test_masks_hold_what_is_at_or_above_the_threshold(evidence: Evidence) -> None:
    # The median of the non-zero activations 1, 2, 3, 3, 4, 8 is 3.
    masks = [f.mask.tolist() for f in evidence.firings(0)]
    assert masks == [
        [[False, False], [True, False]],
        [[False, True], [False, False]],
        [[True, False], [False, True]],
    ]


def test_a_faint_picture_keeps_its_strongest_patch_in_the_mask() -> None:
    faint = replace(array_evidence(), thresholds=np.array([100.0]))
    assert [int(f.mask.sum()) for f in faint.firings(0)] == [1, 1, 2]


def test_masks_of_a_rare_unit_hold_only_patches_that_fire() -> None:
    # A neuron that fires on under 1 % of patches: the quantile over all of them is not positive.
    rare = replace(array_evidence(), thresholds=np.array([-0.1]))
    assert [f.mask.tolist() for f in rare.firings(0)] == [
        [[False, False], [True, False]],
        [[True, True], [False, True]],
        [[True, False], [False, True]],
    ]


def test_silent_pictures_of_a_sparse_unit_are_those_in_which_it_never_fires(
    evidence: Evidence,
) -> None:
    assert silent(evidence, 0).tolist() == [True, False, False, False, True, True]


def test_silent_pictures_of_a_dense_unit_lie_at_or_below_its_median() -> None:
    peaks = np.array([[5, 1, 4, 2, 6, 3]])
    dense = replace(array_evidence(), all_peaks=peaks)
    assert silent(dense, 0).tolist() == [False, True, False, True, False, True]


def test_units_that_never_fire_have_no_evidence(tmp_path: Path) -> None:
    bundle = bundle_evidence(tmp_path)
    assert bundle.firings(1) == []
    assert bundle.look_alikes(1, 5).tolist() == []


def test_split_alternates_and_shares_no_source(tmp_path: Path) -> None:
    apart = split(bundle_evidence(tmp_path / "apart"), 0)
    assert ([f.image for f in apart.describe], [f.image for f in apart.score]) == ([2, 3], [1])
    sources = ("a", "b", "b", "c", "d", "e")  # the two strongest are of one photograph
    shared = split(bundle_evidence(tmp_path / "shared", sources), 0)
    assert ([f.image for f in shared.describe], [f.image for f in shared.score]) == ([2, 1], [3])


def test_at_most_so_many_pictures_are_kept(tmp_path: Path) -> None:
    vectors = np.ones((FIRINGS + 2, 4, 3), dtype=np.float32)
    vectors[:, 0, 0] += np.arange(FIRINGS + 2) / 8
    store = write_store(tmp_path / "store", [vectors])
    dictionary = write_dictionary(tmp_path / "d", identity_sae(3, 3), store)
    made = build(store, dictionary, tmp_path / "b", BuildConfig(), progress=False)
    firings = BundleEvidence(made).firings(0)
    assert [f.image for f in firings] == list(range(FIRINGS + 1, 1, -1))


def test_look_alikes_are_the_silent_pictures_nearest_to_the_firing_ones(tmp_path: Path) -> None:
    # Of the arrays by embedding: pictures 1 to 3 fire; 5 points nearly there, 4 the other way.
    assert array_evidence().look_alikes(0, 9).tolist() == [5, 0, 4]
    # Of a bundle by patch: picture 2 looks like picture 0 but for feature 0, picture 3 does not.
    vectors = np.zeros((40, 4, 3), dtype=np.float32)
    vectors[0] = [1, 5, 0]
    vectors[2] = [0, 5, 0]
    vectors[3:] = [0, 0, 5]
    vectors[1] = [0, 0, 5]
    store = write_store(tmp_path / "store", [vectors])
    dictionary = write_dictionary(tmp_path / "d", identity_sae(3, 3), store)
    made = BundleEvidence(build(store, dictionary, tmp_path / "b", BuildConfig(), progress=False))
    assert made.look_alikes(0, 1).tolist() == [2]


def test_identity_outlives_a_description_but_not_a_rebuild(tmp_path: Path) -> None:
    before = bundle_evidence(tmp_path)
    described = BundleEvidence(
        describe_bundle(
            tmp_path / "b", DescribeConfig(describer="caption-pmi", metrics=()), progress=False
        )
    )
    assert described.identity == before.identity
    assert bundle_evidence(tmp_path / "other", ("a",) * 6).identity != before.identity

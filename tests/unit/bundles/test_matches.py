"""Counterparts of features in another dictionary: by what they do, or by what they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from typer.testing import CliRunner

from tests.worlds import serving
from tests.worlds import tiny as worlds
from vision_sae.bundles import matches
from vision_sae.bundles.build import build
from vision_sae.bundles.matches import match_bundles
from vision_sae.bundles.read import Bundle, read_bundle
from vision_sae.cli import app
from vision_sae.config import BuildConfig
from vision_sae.dictionaries.kinds.topk import TopKSae
from vision_sae.errors import InvalidInputError, MismatchError
from vision_sae.evidence.bundle import BundleEvidence
from vision_sae.labels.store import LabelStore
from vision_sae.v1 import catalog_service_pb2 as catalog_pb
from vision_sae.v1 import catalog_service_pb2_grpc as catalog_grpc
from vision_sae.v1 import feature_pb2
from vision_sae.v1 import search_service_pb2 as search_pb
from vision_sae.v1 import search_service_pb2_grpc as search_grpc

DIM, IMAGES, PATCHES = 6, 60, 4
ORDER = [3, 0, 5, 1, 4, 2]
"""Feature i of the other dictionary is feature ``ORDER[i]`` of the first."""


def turned() -> TopKSae:
    """The features of `worlds.identity_sae` in another order."""
    rows = torch.eye(DIM)[ORDER]
    return TopKSae(
        w_enc=rows.clone(), b_enc=torch.zeros(DIM), w_dec=rows, b_dec=torch.zeros(DIM), k=2
    )


def data(seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).standard_normal((IMAGES, PATCHES, DIM))


def made(root: Path, name: str, sae: Any, vectors: NDArray[Any], **options: Any) -> Path:
    store = worlds.write_store(root / f"{name}-store", [vectors], **options)
    worlds.write_dictionary(root / f"{name}-d", sae, store)
    config = BuildConfig(exemplars=2, quantile_exemplars=0)
    build(store, root / f"{name}-d", root / name, config, progress=False)
    return root / name


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("m"), "one", worlds.identity_sae(DIM, 2), data())


@pytest.fixture(scope="module")
def other(one: Path) -> Path:
    return made(one.parent, "other", turned(), data())


@pytest.fixture(scope="module")
def matched(one: Path, other: Path) -> Bundle:
    return match_bundles(other, one)


def test_the_same_features_in_another_order_find_each_other(matched: Bundle) -> None:
    found = matched.matches["one"]
    assert found.nearest.tolist() == ORDER
    assert found.partner.tolist() == ORDER
    np.testing.assert_allclose(found.similarities, 1, atol=1e-3)  # the same activations
    entry = matched.manifest["matches"]["one"]
    assert entry["measure"] == "activations"
    assert entry["nearest"] == pytest.approx(1, abs=1e-3)


def test_floor_is_what_pictures_in_another_order_reach(matched: Bundle) -> None:
    # 240 patches, independent but for their picture: correlations are about 240 ** -0.5 = 0.065,
    # and the largest of six of them is rarely above three times that.
    entry = matched.manifest["matches"]["one"]
    assert 0 < entry["nearest_floor"] < 0.2
    assert entry["partner_floor"] <= entry["nearest_floor"]


def test_correlations_are_those_of_dense_codes(one: Path, tmp_path: Path) -> None:
    noisy = data() + 0.7 * data(1)
    bundle = read_bundle(made(tmp_path, "noisy", worlds.identity_sae(DIM, 2), noisy))
    first = read_bundle(one)
    found = match_bundles(bundle.path, one).matches["one"]

    def dense(bundle: Bundle) -> NDArray[np.float64]:
        filled = np.zeros((IMAGES * PATCHES, DIM))
        for patch in range(len(filled)):
            features, values = bundle.codes.row(patch)
            filled[patch, features] = values
        return filled

    expected = np.corrcoef(dense(bundle).T, dense(first).T)[:DIM, DIM:]
    np.testing.assert_allclose(found.similarities, expected.max(1), atol=1e-4)
    assert found.nearest.tolist() == expected.argmax(1).tolist()
    rows = np.arange(DIM)
    from scipy.optimize import linear_sum_assignment

    assert found.partner.tolist() == linear_sum_assignment(-expected)[1].tolist()
    np.testing.assert_allclose(found.partner_similarities, expected[rows, found.partner], atol=1e-4)


def test_other_pictures_of_the_same_site_are_matched_by_direction(
    one: Path, tmp_path: Path
) -> None:
    path = made(tmp_path, "elsewhere", turned(), data(5)[:50], data_sha256="e" * 64)
    made_bundle = match_bundles(path, one)
    assert made_bundle.manifest["matches"]["one"]["measure"] == "directions"
    assert made_bundle.matches["one"].nearest.tolist() == ORDER


def test_a_feature_that_never_fires_has_no_counterpart(one: Path, tmp_path: Path) -> None:
    sae = turned()
    sae.w_enc[2] = 0
    found = match_bundles(made(tmp_path, "dead", sae, data()), one).matches["one"]
    assert (found.nearest[2], found.partner[2], found.similarities[2]) == (-1, -1, 0)
    assert (found.nearest >= 0).sum() == DIM - 1


def test_wide_dictionaries_are_not_assigned(
    one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vision_sae.dictionaries.matching.HUNGARIAN_WIDTH", DIM - 1)
    bundle = match_bundles(made(tmp_path, "wide", turned(), data()), one)
    assert bundle.matches["one"].nearest.tolist() == ORDER
    assert (bundle.matches["one"].partner == -1).all()
    assert "partner" not in bundle.manifest["matches"]["one"]


def test_a_bundle_is_not_matched_with_its_namesake(one: Path) -> None:
    with pytest.raises(InvalidInputError, match="both bundles are called one"):
        match_bundles(one, one)


def test_what_shares_neither_pictures_nor_site_is_refused(one: Path, tmp_path: Path) -> None:
    options = {"data_sha256": "e" * 64, "site": "blocks.0.update"}
    path = made(tmp_path, "deeper", turned(), data(5)[:50], **options)
    with pytest.raises(MismatchError, match="build one of them on the other's pictures"):
        match_bundles(path, one)


def test_command(one: Path, tmp_path: Path) -> None:
    path = made(tmp_path, "told", turned(), data())
    done = CliRunner().invoke(app, ["match", str(path), str(one)])
    assert done.exit_code == 0
    assert done.stdout.startswith("nearest by activations: mean 1.000, by chance 0.")


@pytest.fixture(scope="module")
def channel(matched: Bundle, one: Path) -> Iterator[grpc.Channel]:
    labels = LabelStore("sqlite://")
    held = serving.state(matched, labels)
    (served,) = held.dictionaries.values()
    second = type(served)(read_bundle(one), served.model, labels, BundleEvidence(read_bundle(one)))
    held.dictionaries[second.resource] = second
    with serving.serving(held) as opened:
        yield opened


def test_a_feature_is_served_with_its_counterparts(channel: Any, matched: Bundle) -> None:
    request = catalog_pb.GetFeatureRequest(
        name="dictionaries/other/features/0", view=feature_pb2.FEATURE_VIEW_FULL
    )
    feature = catalog_grpc.CatalogServiceStub(channel).GetFeature(request).feature
    kind = feature_pb2.FEATURE_RELATION_MATCH
    (match,) = [related for related in feature.related if related.relation == kind]
    assert match.feature == f"dictionaries/one/features/{ORDER[0]}"
    assert match.similarity == pytest.approx(1, abs=1e-3)
    floor = matched.manifest["matches"]["one"]["partner_floor"]
    assert match.random_floor == pytest.approx(floor)


def test_directions_are_searched_in_both(channel: Any) -> None:
    request = search_pb.SearchFeaturesRequest(feature="dictionaries/other/features/0")
    hits = search_grpc.SearchServiceStub(channel).SearchFeatures(request).hits
    assert hits[0].feature.name == f"dictionaries/one/features/{ORDER[0]}"


def test_patches_of_another_crop_are_other_places(one: Path, other: Path) -> None:
    first, second = read_bundle(one), read_bundle(other)
    assert matches._same_places(first, second)
    second = replace(second, preprocessing=replace(second.preprocessing, crop_pct=0.5))
    assert not matches._same_places(first, second)

"""Relations between features, on codes whose relations are planted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.worlds import serving
from vision_sae.bundles import relations as module
from vision_sae.bundles.codes import CodesBuilder, SparseRows
from vision_sae.bundles.relations import Relations, nearest_floor, relations
from vision_sae.dictionaries.protocol import to_codes

PATCHES = 400
ANIMAL, CAT, KITTEN, ALWAYS, LONE, DEAD, TWIN = range(7)


@pytest.fixture(scope="module")
def dense() -> NDArray[np.float32]:
    """Animals fire on a third of the patches, cats on a third of those, kittens on a third of the
    cats'; one feature fires always; the twin is nearly the animals' own."""
    random = np.random.default_rng(0)
    made = np.zeros((PATCHES, 7), dtype=np.float32)
    made[:132, ANIMAL] = 1 + random.random(132)
    made[:44, CAT] = 1 + random.random(44)
    made[:15, KITTEN] = 1 + random.random(15)
    made[:, ALWAYS] = 1 + random.random(PATCHES)
    made[200:260, LONE] = 1 + random.random(60)
    made[:132, TWIN] = made[:132, ANIMAL] * 2
    made[300, TWIN] = 0.5
    return made.astype(np.float16).astype(np.float32)


def codes_of(dense: NDArray[np.float32]) -> SparseRows:
    builder = CodesBuilder()
    builder.add(to_codes(torch.from_numpy(dense)))
    return builder.by_patch()


@pytest.fixture(scope="module")
def decoder() -> torch.Tensor:
    rows = torch.eye(7, 9)
    rows[TWIN] = torch.eye(7, 9)[ANIMAL] * 3 + torch.eye(7, 9)[LONE]  # cosine 3 / sqrt(10)
    return rows


@pytest.fixture(scope="module", params=[512, 2], ids=["one block", "small blocks"])
def found(
    dense: NDArray[np.float32], decoder: torch.Tensor, request: pytest.FixtureRequest
) -> Relations:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "_BLOCK", request.param)
        return relations(codes_of(dense), decoder)


def test_parents_are_the_rarest_that_cover(found: Relations) -> None:
    assert found.parent[KITTEN] == CAT  # not the animal, which covers it too
    assert found.parent[CAT] == ANIMAL
    assert found.parent[ANIMAL] == TWIN  # one patch more
    assert found.parent[LONE] == -1  # what fires always is nobody's parent
    assert found.parent[ALWAYS] == found.parent[DEAD] == -1
    assert found.covered[KITTEN] == 1
    assert found.children(ANIMAL).tolist() == [CAT]
    assert found.children(LONE).tolist() == []


def test_families_are_a_forest(found: Relations) -> None:
    for feature in range(7):
        seen = [feature]
        while found.parent[seen[-1]] >= 0:
            seen.append(int(found.parent[seen[-1]]))
        assert len(seen) == len(set(seen))


def test_correlations_are_those_of_the_dense_codes(
    found: Relations, dense: NDArray[np.float32]
) -> None:
    with np.errstate(invalid="ignore"):
        expected = np.corrcoef(dense.T.astype(np.float64))
    assert found.together[ANIMAL, 0] == TWIN
    for feature in (ANIMAL, CAT, LONE, ALWAYS):
        for other, value in zip(found.together[feature], found.correlations[feature], strict=True):
            if other >= 0:
                assert value == pytest.approx(expected[feature, other], abs=1e-5)
    assert set(found.together[DEAD]) == {-1}
    assert DEAD not in found.together


def test_nearest_directions(found: Relations) -> None:
    assert found.nearest[ANIMAL, 0] == TWIN
    assert found.cosines[ANIMAL, 0] == pytest.approx(3 / np.sqrt(10))
    assert found.nearest.shape == (7, 5)
    assert all(feature not in found.nearest[feature] for feature in range(7))


def test_a_rare_feature_has_no_parent(dense: NDArray[np.float32], decoder: torch.Tensor) -> None:
    rare = dense.copy()
    rare[9:, KITTEN] = 0
    assert relations(codes_of(rare), decoder).parent[KITTEN] == -1


def test_the_floor_grows_with_the_width_and_falls_with_the_dimension() -> None:
    assert nearest_floor(100, 64) < nearest_floor(2000, 64)
    assert nearest_floor(100, 256) < nearest_floor(100, 64)


def test_a_bundle_holds_and_a_server_shows_them(tmp_path: Path) -> None:
    from vision_sae_server.answers.features import feature_messages
    from vision_sae_server.served import Served

    from vision_sae.labels.entries import Unit
    from vision_sae.labels.store import LabelStore
    from vision_sae.v1 import exemplar_pb2, feature_pb2

    bundle = serving.zoo(tmp_path)
    assert bundle.relations is not None
    labels = LabelStore("sqlite://")
    labels.import_bundle(bundle)
    held = serving.state(bundle, labels)
    served: Served = held.dictionaries[serving.DICTIONARY]
    options = exemplar_pb2.ExemplarOptions()
    (full,) = feature_messages(served, [0], feature_pb2.FEATURE_VIEW_FULL, options)
    (basic,) = feature_messages(served, [0], feature_pb2.FEATURE_VIEW_BASIC, options)
    assert not basic.related
    kinds = [related.relation for related in full.related]
    assert kinds == sorted(kinds)
    near = full.related[0]
    assert near.relation == feature_pb2.FEATURE_RELATION_NEAREST
    assert near.random_floor == pytest.approx(bundle.manifest["nearest_floor"])
    assert near.feature != full.name
    # Whose label has been confirmed says so.
    labels.edit(Unit(serving.DICTIONARY, 2), "fox")
    for index in range(3, serving.WIDTH):
        labels.edit(Unit(serving.DICTIONARY, index), "other")
    (full,) = feature_messages(served, [0], feature_pb2.FEATURE_VIEW_FULL, options)
    said = {related.label: related.judged_by for related in full.related}
    assert set(said.items()) <= {("dog", ""), ("fox", "person"), ("other", "person"), ("", "")}
    assert said["other"] == "person"

"""Units are found by what the regions that fire them mean."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.worlds.contrastive import PlantedClip, evidence_of, random_cells
from vision_sae.descriptions import meanings as module
from vision_sae.descriptions.meanings import meanings, nearest
from vision_sae.evidence.arrays import ArrayEvidence
from vision_sae.evidence.probe import Probe
from vision_sae.evidence.probe_pass import make_probe

THINGS = ("red apple", "green tree", "blue boat", "grey stone")
UNITS = [[0], [1], [2], []]
"""What each unit fires on; the last on nothing."""


@pytest.fixture
def clip() -> PlantedClip:
    return PlantedClip(THINGS)


@pytest.fixture
def evidence() -> ArrayEvidence:
    return evidence_of(random_cells(40, len(THINGS)), UNITS)


@pytest.fixture
def probe(clip: PlantedClip, evidence: ArrayEvidence, tmp_path: Path) -> Probe:
    return make_probe(clip, evidence, tmp_path / "probe", progress=False)


def test_unit_nearest_to_a_text_is_the_one_that_fires_on_it(
    clip: PlantedClip, evidence: ArrayEvidence, probe: Probe, tmp_path: Path
) -> None:
    vectors = meanings(evidence, probe, tmp_path)
    for unit, thing in enumerate(THINGS[:3]):
        (query,) = clip.embed_texts([thing]).numpy()
        found = nearest(query, vectors)
        assert found[0][0] == unit
        assert [cosine for _, cosine in found] == sorted((c for _, c in found), reverse=True)


def test_what_all_regions_share_is_subtracted(
    evidence: ArrayEvidence, probe: Probe, tmp_path: Path
) -> None:
    vectors = meanings(evidence, probe, tmp_path)
    # The gap between pictures and texts is in every region and in no meaning.
    np.testing.assert_allclose(np.linalg.norm(vectors[:3], axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] < 0


def test_unit_that_never_fires_means_nothing(
    evidence: ArrayEvidence, probe: Probe, tmp_path: Path
) -> None:
    vectors = meanings(evidence, probe, tmp_path)
    assert not vectors[3].any()
    assert 3 not in [unit for unit, _ in nearest(vectors[0], vectors)]


def test_meanings_are_computed_once(
    evidence: ArrayEvidence, probe: Probe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = meanings(evidence, probe, tmp_path)
    monkeypatch.setattr(module, "_compute", lambda *_: pytest.fail("computed again"))
    assert np.array_equal(meanings(evidence, probe, tmp_path), first)

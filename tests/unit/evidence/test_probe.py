"""The probe: pictures and masked regions as a contrastive model sees them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.worlds.contrastive import (
    CELL,
    PlantedClip,
    evidence_of,
    jpeg,
    phrase_vector,
    picture,
    random_cells,
)
from vision_sae.activations.store import ImageRecord
from vision_sae.errors import CorruptArtifactError, MismatchError, NotFoundError
from vision_sae.evidence.arrays import ArrayEvidence
from vision_sae.evidence.overlaps import overlaps
from vision_sae.evidence.probe import Probe
from vision_sae.evidence.probe_pass import make_probe
from vision_sae.evidence.protocol import Firing
from vision_sae.models.grid import PatchGrid, Preprocessing
from vision_sae.models.protocol import PatchEmbeddings

THINGS = ("apple", "boat", "cat", "dog", "egg")


@pytest.fixture
def evidence() -> ArrayEvidence:
    return evidence_of(random_cells(20, len(THINGS)), [[0], [1, 2]])


@pytest.fixture
def model() -> PlantedClip:
    return PlantedClip(THINGS, gap=0.0)


def probe_of(model: PlantedClip, evidence: ArrayEvidence, directory: Path) -> Probe:
    return make_probe(model, evidence, directory, batch_size=7, progress=False)


def firing(mask: list[list[int]], image: int = 0) -> Firing:
    area = np.array(mask, dtype=np.bool_)
    return Firing(image, 0, 1.0, area.astype(np.float32), area)


def one_picture(
    width: int, height: int, grid: PatchGrid, preprocessing: Preprocessing
) -> ArrayEvidence:
    """Evidence of a single black picture of this size, for a model of this grid."""
    nothing = np.zeros((1, 1), dtype=np.float32)
    return ArrayEvidence(
        name="x",
        identity="x",
        data_sha256="x",
        site="x",
        images=[ImageRecord("0", width, height, "", ())],
        grid=grid,
        preprocessing=preprocessing,
        thumbnails=[jpeg(picture(np.zeros((1, 1), dtype=np.int64)).resize((width, height)))],
        embeddings=nothing,
        all_peaks=nothing,
        firing_images=nothing.astype(np.int64),
        maps=np.zeros((1, 1, grid.patches), dtype=np.float32),
        thresholds=nothing[0],
    )


def test_pictures_are_unit_vectors_in_row_order(
    tmp_path: Path, model: PlantedClip, evidence: ArrayEvidence
) -> None:
    cells = random_cells(20, len(THINGS))
    probe = probe_of(model, evidence, tmp_path / "probe")
    assert probe.embeddings.shape == (20, 256)
    assert (probe.patches.shape, probe.patches.dtype) == ((20, 16, 256), np.float16)
    words = np.stack([phrase_vector(thing, 256).numpy() for thing in THINGS])
    for i in range(20):
        mean = words[cells[i]].mean((0, 1))
        np.testing.assert_allclose(probe.embeddings[i], mean / np.linalg.norm(mean), atol=1e-5)


def test_region_is_the_normalised_sum_of_its_patches(
    tmp_path: Path, model: PlantedClip, evidence: ArrayEvidence
) -> None:
    cells = random_cells(20, len(THINGS))
    probe = probe_of(model, evidence, tmp_path / "probe")
    firings = evidence.firings(1)
    words = np.stack([phrase_vector(thing, 256).numpy() for thing in THINGS])
    regions = probe.regions(evidence, firings)
    assert len(firings) > 10
    for region, f in zip(regions, firings, strict=True):
        total = words[cells[f.image][f.mask]].sum(0)
        np.testing.assert_allclose(region, total / np.linalg.norm(total), atol=2e-3)


def test_attention_weighs_the_patches_of_a_region(
    tmp_path: Path, model: PlantedClip, evidence: ArrayEvidence
) -> None:
    probe = probe_of(model, evidence, tmp_path / "probe")
    f = firing([[1, 1, 0, 0]] + [[0] * 4] * 3)
    probe.weights = np.zeros((20, 16), dtype=np.float16)
    probe.weights[0, :2] = 0.25, 0.75
    expected = 0.25 * probe.patches[0, 0] + 0.75 * probe.patches[0, 1].astype(np.float32)
    (region,) = probe.regions(evidence, [f])
    np.testing.assert_allclose(region, expected / np.linalg.norm(expected), atol=1e-3)
    # Where attention looks away from all of it, its patches count alike.
    probe.weights = np.zeros((20, 16), dtype=np.float16)
    expected = probe.patches[0, 0] + probe.patches[0, 1].astype(np.float32)
    (region,) = probe.regions(evidence, [f])
    np.testing.assert_allclose(region, expected / np.linalg.norm(expected), atol=1e-3)


def test_overlaps_by_hand() -> None:
    # A picture of 12 x 8: one model squashes it to 4 x 4 with 2 x 2 patches (6 x 4 pixels of the
    # picture each), the other cuts the middle 8 x 8 out and has 2 x 4 patches (4 wide, 4 high;
    # then 2 wide).
    squash = Preprocessing(4, 4, crop_mode="squash").geometry(12, 8)
    centre = Preprocessing(8, 8).geometry(12, 8)
    found = overlaps(PatchGrid(2, 4, 0, 4, 2), centre, PatchGrid(2, 2, 0, 2, 2), squash)
    np.testing.assert_array_equal(found.vertical, [[4, 0], [0, 4]])
    # Columns 2-4, 4-6, 6-8, 8-10 against 0-6, 6-12.
    np.testing.assert_array_equal(found.horizontal, [[2, 0], [2, 0], [0, 2], [0, 2]])


@pytest.mark.parametrize(("width", "height"), [(224, 224), (640, 427), (97, 300)])
def test_overlap_is_the_area_of_intersecting_boxes(width: int, height: int) -> None:
    one, other = PatchGrid(16, 16, 1, 14, 14), PatchGrid(7, 7, 1, 32, 32)
    at = Preprocessing(224, 224, crop_pct=0.9).geometry(width, height)
    other_at = Preprocessing(224, 224, crop_mode="squash").geometry(width, height)
    found = overlaps(one, at, other, other_at)
    area = np.einsum("Rr,Cc->RCrc", found.vertical, found.horizontal).reshape(256, 49)
    a, b = one.boxes(at)[:, None], other.boxes(other_at)[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    np.testing.assert_allclose(area, np.maximum(sides, 0).prod(-1), rtol=1e-3, atol=0.05)


def test_mask_is_carried_over_by_area_in_the_original_picture(tmp_path: Path) -> None:
    # The units' model squashes 24 x 8 into 2 x 2 patches of 12 x 4; the probe's sees the middle
    # 8 x 8 as 4 x 4 patches of 2 x 2. The left upper patch covers the probe's left upper quarter.
    squash = Preprocessing(4, 4, crop_mode="squash")
    evidence = one_picture(24, 8, PatchGrid(2, 2, 0, 2, 2), squash)
    model = PlantedClip(THINGS, cells=4)
    probe = probe_of(model, evidence, tmp_path / "probe")
    cover = probe.cover(evidence, firing([[1, 0], [0, 0]])).reshape(4, 4)
    np.testing.assert_allclose(cover, np.kron([[4, 0], [0, 0]], np.ones((2, 2))), atol=1e-5)


def test_mask_outside_the_crop_is_the_nearest_patch(tmp_path: Path) -> None:
    # Of 48 x 8 pixels the probe sees columns 20 to 28; the mask lies on columns 0 to 6, row 4-8.
    squash = Preprocessing(8, 16, crop_mode="squash")
    evidence = one_picture(48, 8, PatchGrid(2, 8, 0, 4, 2), squash)
    probe = probe_of(PlantedClip(THINGS, cells=4), evidence, tmp_path / "probe")
    outside = [[0] * 8, [1] + [0] * 7]
    cover = probe.cover(evidence, firing(outside)).reshape(4, 4)
    assert cover.sum() == 1
    assert cover[2:, 0].sum() == 1


def test_probe_is_reused_for_the_same_model_and_pictures_alone(
    tmp_path: Path, model: PlantedClip, evidence: ArrayEvidence
) -> None:
    first = probe_of(model, evidence, tmp_path / "probe")
    written = (first.path / "patches.npy").stat().st_mtime_ns
    again = probe_of(model, evidence, tmp_path / "probe")
    assert (again.path / "patches.npy").stat().st_mtime_ns == written
    assert again.identity == first.identity
    other = probe_of(PlantedClip(THINGS[::-1]), evidence, tmp_path / "probe")
    assert other.identity != first.identity
    fewer = evidence_of(random_cells(5, len(THINGS)), [[0]])
    assert len(probe_of(model, fewer, tmp_path / "probe").embeddings) == 5


def test_what_does_not_belong_together_is_refused(
    tmp_path: Path, model: PlantedClip, evidence: ArrayEvidence
) -> None:
    probe = probe_of(model, evidence, tmp_path / "probe")
    probe.check(model, evidence)
    with pytest.raises(MismatchError, match="other pictures"):
        probe.check(model, evidence_of(random_cells(5, 3), [[0]]))
    with pytest.raises(MismatchError, match="not with this"):
        probe.check(PlantedClip(THINGS[::-1]), evidence)


def test_changed_file_is_found(tmp_path: Path, model: PlantedClip, evidence: ArrayEvidence) -> None:
    probe = probe_of(model, evidence, tmp_path / "probe")
    probe.verify()
    with (probe.path / "weights.npy").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    with pytest.raises(CorruptArtifactError, match=r"weights\.npy"):
        probe.verify()


def test_probe_that_was_not_finished_is_not_opened(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="not a finished probe"):
        Probe(tmp_path)


def test_cells_are_the_patches_of_the_world() -> None:
    assert picture(np.zeros((4, 4), dtype=np.int64)).size == (4 * CELL, 4 * CELL)


def test_who_asks_for_a_probe_that_is_being_made_waits_for_it(
    tmp_path: Path,
    model: PlantedClip,
    evidence: ArrayEvidence,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked = list[int]()

    def looking(images: Tensor) -> PatchEmbeddings:
        looked.append(len(images))
        return PlantedClip.embed_patches(model, images)

    monkeypatch.setattr(model, "embed_patches", looking)
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: probe_of(model, evidence, tmp_path / "p"), range(4)))
    assert len({probe.identity for probe in made}) == 1
    made[0].verify()
    assert np.asarray(made[0].embeddings).any(axis=1).all()
    assert sum(looked) == 2 * len(evidence.images)  # once for the patches, once for the whole


class Killed(BaseException):
    """Stands for the end of the process."""


def test_interrupted_probe_goes_on_and_holds_the_same_bits(
    tmp_path: Path,
    model: PlantedClip,
    evidence: ArrayEvidence,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # 20 pictures in batches of 7, each a unit of work of its own: 7, 7, 6.
    monkeypatch.setattr("vision_sae.evidence.probe_pass._UNIT_BATCHES", 1)
    torch.set_num_threads(1)
    whole = probe_of(model, evidence, tmp_path / "whole")
    looked = list[int]()

    def dies_in_the_last_batch(images: Tensor) -> PatchEmbeddings:
        looked.append(len(images))
        if looked == [7, 7, 6]:
            raise Killed
        return PlantedClip.embed_patches(model, images)

    monkeypatch.setattr(model, "embed_patches", dies_in_the_last_batch)
    monkeypatch.setattr(
        model, "forward", lambda images: PlantedClip(THINGS, gap=0.0).forward(images)
    )
    with pytest.raises(Killed):
        probe_of(model, evidence, tmp_path / "resumed")
    with pytest.raises(NotFoundError):
        Probe(tmp_path / "resumed")
    resumed = probe_of(model, evidence, tmp_path / "resumed")
    assert looked == [7, 7, 6, 6]  # the last batch alone was looked at again
    assert resumed.manifest == whole.manifest

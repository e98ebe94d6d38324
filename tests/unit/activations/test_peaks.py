"""Peaks, maps and thresholds of units that are too many to store."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from vision_sae.activations.peaks import PeakCollector, UnitPeaks
from vision_sae.errors import InvalidInputError

PICTURES, PATCHES, UNITS, KEEP = 30, 6, 5, 4


def site_vectors() -> Tensor:
    """Vectors (pictures, patches, units) that float16 holds exactly; unit 4 is never positive."""
    values = np.random.default_rng(0).permutation(PICTURES * PATCHES * UNITS) / 4 - 100
    vectors = torch.from_numpy(values).float().reshape(PICTURES, PATCHES, UNITS)
    vectors[:, :, 4] = -vectors[:, :, 4].abs() - 1
    return vectors


def collect(vectors: Tensor, batch: int, quantile: float = 0.5) -> UnitPeaks:
    collector = PeakCollector(UNITS, PATCHES, keep=KEEP, pictures=len(vectors))
    for part in vectors.split(batch):
        collector.add("blocks.0.mlp", part)
    return collector.result(quantile)


def test_peaks_are_the_largest_value_over_the_patches() -> None:
    vectors = site_vectors()
    assert torch.equal(collect(vectors, 7).peaks.float(), vectors.amax(1).T)


def test_maps_are_those_of_the_pictures_with_the_highest_peaks() -> None:
    vectors = site_vectors()
    found = collect(vectors, 7)
    for unit in range(4):
        order = vectors[:, :, unit].amax(1).argsort(descending=True)[:KEEP]
        assert found.images[unit].tolist() == order.tolist()
        assert torch.equal(found.maps[unit].float(), vectors[order, :, unit])


def test_unit_that_is_never_positive_has_no_pictures() -> None:
    assert collect(site_vectors(), 7).images[4].tolist() == [-1] * KEEP


def test_of_equal_peaks_the_first_picture_comes_first() -> None:
    found = collect(torch.ones(PICTURES, PATCHES, UNITS), 8)
    assert found.images[0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("batch", [1, 4, 30])
def test_result_does_not_depend_on_the_batches(batch: int) -> None:
    expected, found = collect(site_vectors(), 7), collect(site_vectors(), batch)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_thresholds_are_quantiles_of_all_patches() -> None:
    # Every unit has the same value all over a picture, so any sample of patches is enough.
    vectors = torch.arange(PICTURES).float()[:, None, None].expand(PICTURES, PATCHES, UNITS)
    assert collect(vectors, 7, quantile=0.75).thresholds.tolist() == [0.75 * 29] * UNITS


def test_large_data_is_sampled_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vision_sae.activations.peaks._SAMPLE", 10)
    vectors = torch.arange(PICTURES).float()[:, None, None].expand(PICTURES, PATCHES, UNITS)
    # Ten pictures, every third: 0, 3, ..., 27.
    assert collect(vectors, 7, quantile=1.0).thresholds.tolist() == [27] * UNITS


def test_values_that_float16_cannot_hold_are_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"blocks\.0\.mlp"):
        collect(torch.full((2, PATCHES, UNITS), 1e6), 2)

"""Patches that keep what is true of the whole picture."""

from __future__ import annotations

import torch

from vision_sae.models.artifacts import artifacts


def test_an_artifact_is_far_longer_than_its_neighbours() -> None:
    vectors = torch.nn.functional.normalize(torch.randn(16, 8), dim=1)
    lengths = torch.ones(16)
    lengths[[3, 9]] = torch.tensor([10.0, 2.0])
    assert artifacts(lengths[:, None] * vectors).nonzero().tolist() == [[3]]


def test_vectors_of_one_length_hold_no_artifact() -> None:
    assert not artifacts(torch.eye(8)).any()
    assert not artifacts(torch.zeros(4, 8)).any()

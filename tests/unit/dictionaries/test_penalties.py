from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vision_sae.dictionaries.training import penalties
from vision_sae.dictionaries.training.penalties import (
    agreement_gradients,
    orthogonality_gradient,
)


def unit_rows(width: int, dim: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(width, dim, generator=torch.Generator().manual_seed(seed)))


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(penalties, "training_dtype", lambda _: torch.float32)


def test_orthogonality_by_hand() -> None:
    # cos(a, b) = 0.6, c is orthogonal to both. a and b are nearest to each other, so each of the
    # two terms cos^2 pulls on both: 2 terms * 2 * 0.6 / 3 times the other row. c's nearest has
    # cosine 0 and adds nothing.
    rows = torch.tensor([[1.0, 0, 0], [0.6, 0.8, 0], [0, 0, 1]])
    gradient = orthogonality_gradient(rows, 1.0, (0,))
    torch.testing.assert_close(gradient[0], 0.8 * rows[1])
    torch.testing.assert_close(gradient[1], 0.8 * rows[0])
    torch.testing.assert_close(gradient[2], torch.zeros(3))


def test_orthogonality_is_the_gradient_of_the_largest_squared_cosine() -> None:
    rows = unit_rows(30, 6, 0).requires_grad_()
    cosines = rows @ rows.T
    squared = cosines.square() - 2 * torch.eye(30)
    (0.3 * squared.max(1).values.mean()).backward()
    gradient = orthogonality_gradient(rows.detach(), 0.3, (0,))
    torch.testing.assert_close(gradient, rows.grad)


def test_features_are_compared_within_chunks_drawn_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(penalties, "_CHUNK", 8)
    rows = unit_rows(64, 6, 0)
    same, other = (orthogonality_gradient(rows, 1.0, (5, step)) for step in (0, 1))
    assert torch.equal(same, orthogonality_gradient(rows, 1.0, (5, 0)))
    assert not torch.allclose(same, other)


def test_agreement_is_the_gradient_of_the_mean_largest_cosine() -> None:
    decoders = [unit_rows(20, 6, seed).requires_grad_() for seed in range(3)]
    pairs = [(a, b) for a in decoders for b in decoders if a is not b]
    similarity = torch.stack([(a @ b.T).max(1).values.mean() for a, b in pairs]).mean()
    (0.5 * (1 - similarity)).backward()
    gradients = agreement_gradients([d.detach() for d in decoders], 0.5, (0,))
    for gradient, decoder in zip(gradients, decoders, strict=True):
        torch.testing.assert_close(gradient, decoder.grad)


def test_equal_dictionaries_are_only_pulled_along_themselves() -> None:
    rows = unit_rows(20, 6, 0)
    for gradient in agreement_gradients([rows, rows.clone()], 1.0, (0,)):
        tangential = gradient - (gradient * rows).sum(1, keepdim=True) * rows
        torch.testing.assert_close(tangential, torch.zeros(20, 6), rtol=0, atol=1e-6)

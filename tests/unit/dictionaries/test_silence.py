from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from vision_sae.dictionaries.training import aux_k, silence
from vision_sae.dictionaries.training.aux_k import DeadFeatures, aux_gradients
from vision_sae.dictionaries.training.silence import DeadSearch

LIMIT, ROWS = 100, 10


class OnGpu(Tensor):
    """A tensor of host memory that says it is on a GPU."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda")


def as_on_gpu(tensor: Tensor) -> Tensor:
    return tensor.as_subclass(OnGpu)


def test_a_bound_holds_every_dead_feature_until_the_next_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Features fall silent one after another; the mask among the candidates finds exactly them."""
    monkeypatch.setattr(silence, "_STEPS", 4)
    monkeypatch.setattr(silence, "_STRIDE", 2)
    silent = torch.zeros(9, dtype=torch.int64)
    search = DeadSearch(as_on_gpu(silent), LIMIT)
    looks, look = [], DeadSearch._look

    def counted(self: DeadSearch, rows: int) -> None:
        looks.append(rows)
        look(self, rows)

    monkeypatch.setattr(DeadSearch, "_look", counted)
    for step in range(40):
        dead = silent > LIMIT
        got = search.find(as_on_gpu(dead), ROWS)
        numbers = set() if got is None else set(got.numbers[got.dead].tolist())
        assert numbers == set(dead.nonzero()[:, 0].tolist())
        silent += ROWS
        silent[step % 4] = 0  # of nine features four fire in turn
        silent[8] = 0 if step > 30 else silent[8]  # one is revived
    # 11 steps reach row 100; from there one look in 5 steps: those at 0, 10, 20, 30 and 40 rows.
    assert len(looks) == 6
    search.look_again()
    search.find(as_on_gpu(silent > LIMIT), ROWS)
    assert len(looks) == 7


def test_gradients_of_candidates_are_those_of_the_dead_features_among_them() -> None:
    torch.manual_seed(0)
    weights: dict[str, Any] = {
        "w_enc": torch.randn(12, 6), "b_enc": torch.randn(12), "w_dec": torch.randn(12, 6)
    }  # fmt: skip
    centred, error = torch.randn(20, 6), torch.randn(20, 6)
    for dead in ([1, 4], [0, 2, 3, 5, 7, 11]):  # fewer and more than D / 2
        exact = DeadFeatures(torch.tensor(dead), None)
        numbers = torch.randperm(12)
        masked = DeadFeatures(numbers, torch.isin(numbers, torch.tensor(dead)))
        wanted, got = (
            aux_gradients(c, centred, error, **weights, coefficient=0.5) for c in (exact, masked)
        )
        for name in aux_k.AuxGradients._fields[1:]:
            expected = torch.zeros_like(weights[name])
            expected[wanted.features] = getattr(wanted, name)
            actual = torch.zeros_like(weights[name])
            actual[got.features] = getattr(got, name)
            torch.testing.assert_close(actual, expected)

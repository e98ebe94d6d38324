from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.worlds.tiny import identity_sae
from vision_sae.dictionaries.architectures import read_weights
from vision_sae.dictionaries.ensemble import Bagging, Boosting, Ensemble, residual_after
from vision_sae.dictionaries.kinds.topk import TopKSae
from vision_sae.dictionaries.protocol import Dictionary, to_dense
from vision_sae.errors import InvalidInputError


def random_sae(seed: int, width: int = 9, k: int = 2) -> TopKSae:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"w_enc": (width, 5), "b_enc": (width,), "w_dec": (width, 5), "b_dec": (5,)}
    return TopKSae(k=k, **{name: torch.randn(s, generator=generator) for name, s in shapes.items()})


@pytest.mark.parametrize("kind", [Bagging, Boosting])
def test_ensemble_is_a_dictionary_with_the_features_of_all(kind: type[Ensemble]) -> None:
    ensemble = kind([random_sae(0), random_sae(1, width=4)])
    assert isinstance(ensemble, Dictionary)
    assert (ensemble.dim, ensemble.width) == (5, 13)
    assert ensemble.decoder.shape == (13, 5)


def test_bagging_reconstructs_the_mean_of_its_members() -> None:
    members, x = [random_sae(seed) for seed in range(3)], torch.randn(20, 5)
    bagging = Bagging(members)
    mean = torch.stack([m.decode(m.encode(x)) for m in members]).mean(0)
    torch.testing.assert_close(bagging.decode(bagging.encode(x)), mean)


def test_boosting_reconstructs_the_sum_of_its_stages() -> None:
    members, x = [random_sae(seed) for seed in range(3)], torch.randn(20, 5)
    boosting, left, total = Boosting(members), x, torch.zeros_like(x)
    for member in members:
        part = member.decode(member.encode(left))
        left, total = left - part, total + part
    torch.testing.assert_close(boosting.decode(boosting.encode(x)), total)
    torch.testing.assert_close(residual_after(members, x), left)


def test_boosting_by_hand() -> None:
    # The first member keeps the largest of (1, 5, 3), the second the largest of (1, 0, 3).
    boosting = Boosting([identity_sae(3, 1), identity_sae(3, 1)])
    codes = boosting.encode(torch.tensor([[1.0, 5.0, 3.0]]))
    assert codes.indices.tolist() == [[1, 3 + 2]]
    assert codes.values.tolist() == [[5, 3]]


@pytest.mark.parametrize("kind", [Bagging, Boosting])
def test_features_that_fire_stand_first_and_ascend(kind: type[Ensemble]) -> None:
    codes = kind([random_sae(0, k=5), random_sae(1, k=5)]).encode(torch.randn(50, 5))
    for indices, values in zip(codes.indices, codes.values, strict=True):
        count = int((values > 0).sum())
        assert (values[:count] > 0).all()
        assert (indices[:count].diff() > 0).all()


@pytest.mark.parametrize("kind", [Bagging, Boosting])
def test_saved_ensemble_comes_back(kind: type[Ensemble], tmp_path: Path) -> None:
    ensemble, x = kind([random_sae(0), random_sae(1, width=4)]), torch.randn(7, 5)
    back = read_weights(tmp_path, ensemble.save(tmp_path))
    assert type(back) is kind
    assert torch.equal(to_dense(back.encode(x), 13), to_dense(ensemble.encode(x), 13))
    assert torch.equal(back.decode(back.encode(x)), ensemble.decode(ensemble.encode(x)))


def test_members_of_different_dimensions_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="one dimension"):
        Bagging([identity_sae(3, 1), identity_sae(4, 1)])

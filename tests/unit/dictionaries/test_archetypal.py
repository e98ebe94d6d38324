from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vision_sae.config import TrainConfig
from vision_sae.dictionaries.architectures import read_weights
from vision_sae.dictionaries.kinds import archetypal
from vision_sae.dictionaries.kinds.archetypal import (
    BOUND,
    ArchetypalLearner,
    ArchetypalSae,
    first_mixing,
)
from vision_sae.dictionaries.training.scaling import InputScaling
from vision_sae.dictionaries.training.step import learning_rate
from vision_sae.errors import InvalidInputError

DIM, WIDTH, K, POINTS = 8, 24, 3, 20
SCALING = InputScaling(torch.linspace(-1, 1, DIM), 0.7, 1.0)
UNSCALED = InputScaling(torch.zeros(DIM), 1.0, 0.0)


def rows(count: int, seed: int = 2) -> Tensor:
    return torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed)) / DIM**0.5


def learner_with(dead: int = 0, points: int = POINTS, **options: Any) -> ArchetypalLearner:
    settings = {"expansion": 3, "k": K, "dead_after": 100} | options
    config = TrainConfig(architecture="archetypal", **settings)
    learner = ArchetypalLearner(DIM, config, points=rows(points, seed=5))
    learner.silent[:dead] = 101
    return learner


def worked(steps: int = 20, rate: float = 3e-2, **options: Any) -> ArchetypalLearner:
    """A learner after some hasty steps: relaxations have reached their bound."""
    learner = learner_with(**options)
    for seed in range(steps):
        learner.step(rows(64, seed), rate)
    return learner


def test_each_feature_begins_with_half_its_share_in_a_point_of_its_own() -> None:
    points = rows(2000)
    mixing = first_mixing(points, 2000, seed=0)
    assert sorted(mixing.members[:, 0].tolist()) == list(range(2000))
    assert float(mixing.logits.softmax(1)[:, 0].mean()) == pytest.approx(0.5, abs=0.05)
    assert mixing.members.unique().tolist() == list(range(2000))


def test_more_features_than_points_share_them_evenly() -> None:
    own = first_mixing(rows(POINTS), 2 * POINTS + 3, seed=0).members[:, 0]
    assert set(own.bincount(minlength=POINTS).tolist()) == {2, 3}


def test_seed_decides_the_first_mixing() -> None:
    a, b, c = (first_mixing(rows(POINTS), WIDTH, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(a.logits, b.logits)
    assert torch.equal(a.members, b.members)
    assert not torch.equal(a.members, c.members)


def test_first_encoder_reconstructs_the_points_at_their_best_length() -> None:
    learner = learner_with()
    points = learner.mixing.points
    made = learner.forward(points).error + points
    # No other length of all reconstructions would do better: the error is at right angles to them.
    assert float((made * (made - points)).sum()) == pytest.approx(0, abs=1e-3)
    assert float((made - points).square().sum() / points.square().sum()) < 0.6


def textbook_decoder(learner: ArchetypalLearner, logits: Tensor, relaxation: Tensor) -> Tensor:
    """Unit rows of a dense row-stochastic matrix times the points, plus the relaxation."""
    mixing = learner.mixing
    mixture = torch.zeros(WIDTH, len(mixing.points)).scatter_add(
        1, mixing.members, torch.softmax(logits, dim=1)
    )
    return F.normalize(mixture @ mixing.points + relaxation, dim=1)


@pytest.mark.parametrize("dead", [0, 2])
def test_gradients_are_those_of_the_textbook_loss(
    monkeypatch: pytest.MonkeyPatch, dead: int
) -> None:
    learner, z = worked(aux_coefficient=1 / 8), rows(32)
    learner.silent.zero_()
    learner.silent[:dead] = 101
    got: dict[str, Tensor] = {}

    def keep(p: Tensor, gradient: Tensor, *_: object) -> None:
        (name,) = (name for name, t in learner.tensors().items() if t is p)
        got[name] = gradient.clone()

    # The features that the forward pass chose; the choice itself has no derivative.
    forward = learner.forward(z)
    chosen = torch.zeros(len(z), WIDTH)
    for n, (features, count) in enumerate(zip(forward.features, forward.counts, strict=True)):
        chosen[n, features[:count].long()] = 1
    p = {
        name: t.clone().requires_grad_()
        for name, t in learner.tensors().items()
        if name in ("w_enc", "b_enc", "b_dec", "logits", "relaxation")
    }
    decoder = textbook_decoder(learner, p["logits"], p["relaxation"])
    torch.testing.assert_close(learner.decoder, decoder.detach())
    pre = (z - p["b_dec"]) @ p["w_enc"].T + p["b_enc"]
    x_hat = F.relu(pre * chosen) @ decoder + p["b_dec"]
    loss = (z - x_hat).square().sum(1).mean()
    if dead:  # two of the D / 2 = 4 that may take part: half the coefficient
        aux = F.relu(pre[:, :dead]) @ decoder[:dead]
        loss = loss + ((z - x_hat).detach() - aux).square().sum(1).mean() / 16

    monkeypatch.setattr(archetypal, "adam_", keep)
    monkeypatch.setattr("vision_sae.dictionaries.training.sparse.adam_", keep)
    learner.backward(forward, 1e-3)
    for name, expected in zip(p, torch.autograd.grad(loss, list(p.values())), strict=True):
        torch.testing.assert_close(got[name], expected, rtol=1e-4, atol=1e-6, msg=name)


def test_every_decoder_row_without_its_relaxation_is_a_mixture_of_data_points() -> None:
    sae = worked().dictionary(SCALING)
    assert (sae.shares >= 0).all()
    torch.testing.assert_close(sae.shares.sum(1), torch.ones(WIDTH))
    points = SCALING.mean + rows(POINTS, seed=5) / SCALING.scale
    torch.testing.assert_close(sae.points, points)
    for i in range(WIDTH):
        mixture = sum(
            share * points[member]
            for member, share in zip(sae.members[i], sae.shares[i], strict=True)
        )
        row = sae.lengths[i] * sae.decoder[i] - sae.relaxations()[i] + SCALING.mean
        torch.testing.assert_close(row, mixture, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(sae.mixtures()[i], mixture)


def test_relaxations_are_within_their_bound_and_reach_it() -> None:
    sae = worked().dictionary(SCALING)
    lengths = (sae.mixtures() - SCALING.mean).norm(dim=1)
    share = sae.relaxations().norm(dim=1) / lengths
    assert sae.bound == BOUND
    assert float(share.max()) == pytest.approx(BOUND, rel=1e-3)
    # asin(0.1) is 5.7 degrees.
    cosine = torch.cosine_similarity(sae.decoder, sae.mixtures() - SCALING.mean, dim=1)
    assert float(cosine.min()) >= (1 - BOUND**2) ** 0.5 - 1e-5


def test_decoder_rows_keep_unit_norm() -> None:
    torch.testing.assert_close(worked(5).decoder.norm(dim=1), torch.ones(WIDTH))


def test_gradient_of_a_decoder_penalty_counts() -> None:
    learner = learner_with()
    before, pull = learner.decoder.clone(), 1e4 * rows(WIDTH, seed=3)
    learner.step(rows(32), 1e-4, decoder_gradient=pull)
    assert (((learner.decoder - before) * pull).sum(1) < 0).all()


def test_silence_counts_rows_since_a_feature_fired() -> None:
    learner = learner_with()
    for seed in range(3):
        learner.step(rows(1, seed), 1e-3)
    assert set(learner.silent.tolist()) <= {0, 1, 2, 3}
    assert (learner.silent == 0).sum() <= K


def test_folded_dictionary_on_raw_vectors_equals_the_learner_on_scaled_ones() -> None:
    learner, x = worked(), 3 * rows(50) + 1
    sae = learner.dictionary(SCALING)
    z = SCALING.apply(x)
    reconstruction = sae.decode(sae.encode(x))
    expected = (z + learner.forward(z).error) / SCALING.scale + SCALING.mean
    torch.testing.assert_close(reconstruction, expected, rtol=1e-4, atol=1e-4)


def test_saved_dictionary_is_read_back_whole(tmp_path: Path) -> None:
    sae = worked(3).dictionary(SCALING)
    read = read_weights(tmp_path, sae.save(tmp_path))
    assert isinstance(read, ArchetypalSae)
    assert vars(read).keys() == vars(sae).keys()
    for name, value in vars(sae).items():
        got = getattr(read, name)
        assert torch.equal(got, value) if isinstance(value, Tensor) else got == value, name


def test_resumes_to_the_same_bits() -> None:
    learner, resumed = (learner_with(dead=5, seed=seed) for seed in (0, 1))
    for seed in range(4):
        learner.step(rows(32, seed), 1e-2)
    for name, tensor in resumed.tensors().items():
        tensor.copy_(learner.tensors()[name])
    resumed.refresh()
    for seed in range(4, 8):
        for one in (learner, resumed):
            one.step(rows(32, seed), 1e-2)
    for name, tensor in learner.tensors().items():
        assert torch.equal(resumed.tensors()[name], tensor), name


def test_a_single_point_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"raise train\.archetypal\.archetypes") as caught:
        learner_with(points=1)
    assert caught.value.field == "train.archetypal.archetypes"


def test_training_explains_planted_rows() -> None:
    atoms = F.normalize(torch.randn(20, 12, generator=torch.Generator().manual_seed(7)), dim=1)

    def planted(count: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        present = torch.rand(count, 20, generator=generator).argsort(dim=1) < 2
        return (present * (1 + torch.rand(count, 20, generator=generator))) @ atoms / 2.2

    config = TrainConfig(architecture="archetypal", expansion=4, k=3, steps=200, learning_rate=3e-3)
    learner = ArchetypalLearner(12, config, points=planted(400, seed=1))
    reports = [
        learner.step(planted(256, seed=step + 2), learning_rate(config, step))
        for step in range(config.steps)
    ]
    assert float(reports[-1].fvu) < 0.5 * float(reports[0].fvu)
    assert float(reports[-1].fvu) < 0.2

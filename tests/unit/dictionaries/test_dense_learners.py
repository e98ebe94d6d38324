from __future__ import annotations

import threading
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vision_sae.config import TrainConfig
from vision_sae.dictionaries.kinds.gated import GatedLearner
from vision_sae.dictionaries.kinds.jumprelu import JumpReluLearner, jump_relu
from vision_sae.dictionaries.kinds.relu import ReluLearner
from vision_sae.dictionaries.protocol import to_dense
from vision_sae.dictionaries.training import dense
from vision_sae.dictionaries.training.dense import DenseLearner, firing_level
from vision_sae.dictionaries.training.distributed import Group
from vision_sae.dictionaries.training.scaling import InputScaling
from vision_sae.dictionaries.training.step import StepReport, learning_rate
from vision_sae.errors import InvalidInputError

DIM, WIDTH, K = 8, 24, 3
LAMBDA = 0.05
LEARNERS = {"relu": ReluLearner, "jumprelu": JumpReluLearner, "gated": GatedLearner}
every_learner = pytest.mark.parametrize("architecture", LEARNERS)


def rows(count: int, seed: int = 2) -> Tensor:
    return torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed)) / DIM**0.5


def learner_with(architecture: str, dead: int = 0, **options: Any) -> DenseLearner:
    """A learner in the middle of its work: no two parameters alike, ``dead`` features silent."""
    settings = {"expansion": 3, "k": K, "dead_after": 100, "sparsity": LAMBDA} | options
    config = TrainConfig(architecture=architecture, **settings)
    learner = LEARNERS[architecture](DIM, config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in learner.parameters.items():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
            if name == "w_dec":
                p.div_(p.norm(dim=1, keepdim=True))
    learner.silent[torch.randperm(WIDTH, generator=generator)[:dead]] = 101
    return learner


def test_jump_relu_by_hand() -> None:
    # Bandwidth 1/2: the kernel sees |x - threshold| < 1/4, the first two features. By threshold:
    # -(threshold * gradient of the activation + gradient of the count) / bandwidth
    # = -(1 * 2 + 7) / 0.5 = -18, -(2 * 3 + 7) / 0.5 = -26.
    x = torch.tensor([[0.9, 2.1, 1.4]], requires_grad=True)
    threshold = torch.tensor([1.0, 2.0, 1.0], requires_grad=True)
    activations, count = jump_relu(x, threshold, 0.5)
    torch.testing.assert_close(activations, torch.tensor([[0, 2.1, 1.4]]))
    assert count == 2
    (activations @ torch.tensor([2.0, 3, 5]) + 7 * count).sum().backward()
    torch.testing.assert_close(threshold.grad, torch.tensor([-18.0, -26, 0]))
    torch.testing.assert_close(x.grad, torch.tensor([[0.0, 3, 5]]))


def test_jump_relu_estimates_the_derivative_of_the_expectation() -> None:
    # x uniform on [0, 1], threshold t: E[x; x > t] = (1 - t^2) / 2 and P(x > t) = 1 - t, whose
    # derivatives are -t and -1.
    x = ((torch.arange(10_000) + 0.5) / 10_000)[:, None]
    threshold = torch.tensor([0.3], requires_grad=True)
    activations, count = jump_relu(x, threshold, 0.1)
    (by_activation,) = torch.autograd.grad(activations.mean(), threshold, retain_graph=True)
    (by_count,) = torch.autograd.grad(count / 10_000, threshold)
    assert float(by_activation) == pytest.approx(-0.3, rel=1e-3)
    assert float(by_count) == pytest.approx(-1, rel=1e-3)


def textbook_loss(learner: DenseLearner, p: dict[str, Tensor], z: Tensor) -> Tensor:
    """The papers' losses of ReLU and Gated; JumpReLU's without its L0, which has no derivative
    but by the threshold."""
    centred = z - p["b_dec"]
    pre = centred @ p["w_enc"].T + p["b_enc"]
    if "r_mag" in p:
        w_mag = p["r_mag"].exp()[:, None] * p["w_enc"]
        f = F.relu(centred @ w_mag.T + p["b_mag"]) * (pre > 0)
        through_gate = F.relu(pre) @ p["w_dec"].detach() + p["b_dec"].detach()
        penalty = LAMBDA * F.relu(pre).sum(1) + (z - through_gate).square().sum(1)
    elif "log_threshold" in p:
        f = pre * (pre > p["log_threshold"].exp())
        penalty = torch.zeros(())
    else:
        f = F.relu(pre)
        penalty = LAMBDA * f @ p["w_dec"].norm(dim=1)
    x_hat = f @ p["w_dec"] + p["b_dec"]
    return ((z - x_hat).square().sum(1) + penalty).mean()


@every_learner
def test_gradients_are_those_of_the_textbook_loss(architecture: str) -> None:
    learner, z = learner_with(architecture), rows(32)
    p = {n: t.detach().clone().requires_grad_() for n, t in learner.parameters.items()}
    got = learner.loss_gradients(z).gradients
    names = [name for name in p if name != "log_threshold"]
    wanted = torch.autograd.grad(textbook_loss(learner, p, z), [p[name] for name in names])
    for name, expected in zip(names, wanted, strict=True):
        given = got[name]
        if name == "w_dec":  # along a row nothing counts: its norm is fixed
            along = p[name].detach()
            given = given - (given * along).sum(1, keepdim=True) * along
            expected = expected - (expected * along).sum(1, keepdim=True) * along
        torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-6)


def test_threshold_gradient_feature_by_feature() -> None:
    # d loss / d log t = t * -1/e * sum over the rows near t of (t * dloss/df + lambda / N).
    learner, z = learner_with("jumprelu"), rows(32)
    p = {name: t.detach() for name, t in learner.parameters.items()}
    bandwidth = DIM**-0.5
    pre = (z - p["b_dec"]) @ p["w_enc"].T + p["b_enc"]
    got = learner.loss_gradients(z)
    expected = torch.zeros(WIDTH)
    for i, t in enumerate(p["log_threshold"].exp()):
        by_activation = 2 * got.error @ p["w_dec"][i] / 32
        near = (pre[:, i] - t).abs() < bandwidth / 2
        expected[i] = -t / bandwidth * (t * by_activation + LAMBDA / 32)[near].sum()
    assert (expected != 0).sum() > WIDTH / 2
    torch.testing.assert_close(got.gradients["log_threshold"], expected, rtol=1e-4, atol=1e-6)


@every_learner
def test_gradients_do_not_depend_on_the_pieces(
    monkeypatch: pytest.MonkeyPatch, architecture: str
) -> None:
    learner, z = learner_with(architecture), rows(32)
    whole = learner.loss_gradients(z)
    monkeypatch.setattr(dense, "_PIECE", 7 * WIDTH)
    pieces = learner.loss_gradients(z)
    assert torch.equal(pieces.fired, whole.fired)
    torch.testing.assert_close(pieces.error, whole.error)
    for name, gradient in whole.gradients.items():
        torch.testing.assert_close(pieces.gradients[name], gradient, rtol=1e-4, atol=1e-6)


@every_learner
def test_low_precision_gradients_point_the_same_way(architecture: str) -> None:
    exact, low = (learner_with(architecture) for _ in range(2))
    low._dtype = torch.bfloat16
    z = rows(256)
    wanted, got = exact.loss_gradients(z), low.loss_gradients(z)
    assert float(got.l0) == pytest.approx(float(wanted.l0), rel=0.02)
    for name, gradient in wanted.gradients.items():
        assert got.gradients[name].dtype == torch.float32
        cosine = torch.cosine_similarity(got.gradients[name].flatten(), gradient.flatten(), dim=0)
        assert float(cosine) > 0.98, name


@every_learner
def test_two_shares_take_the_step_of_the_whole_batch(
    monkeypatch: pytest.MonkeyPatch, architecture: str
) -> None:
    barrier, parts = threading.Barrier(2), {}

    def all_reduce(tensor: Tensor) -> None:
        parts[threading.get_ident()] = tensor.clone()
        barrier.wait()
        tensor.copy_(sum(parts.values()))
        barrier.wait()

    def work(learner: DenseLearner) -> None:
        with torch.no_grad():
            reports[learner] = learner.step(z, 1e-3)

    monkeypatch.setattr(dense.dist, "all_reduce", all_reduce)
    alone, *pair = (learner_with(architecture, dead=3) for _ in range(3))
    reports: dict[DenseLearner, StepReport] = {}
    z = rows(33)
    work(alone)
    for rank, learner in enumerate(pair):
        learner._group = Group(rank, 2)
    threads = [threading.Thread(target=work, args=(learner,)) for learner in pair]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(pair[0].decoder, pair[1].decoder)
    for name, tensor in alone.tensors().items():
        torch.testing.assert_close(pair[0].tensors()[name], tensor, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(reports[pair[0]], reports[alone])


@every_learner
@pytest.mark.parametrize("aux", [0.0, 1 / 32])
def test_only_the_push_revives_all_dead_features(architecture: str, aux: float) -> None:
    learner = learner_with(architecture, dead_after=200, aux_coefficient=aux)
    with torch.no_grad():
        learner.parameters["b_enc"][:4] = -2  # no row's product comes near 2
    fired = torch.zeros(4, dtype=torch.bool)
    for seed in range(200):
        learner.step(rows(32, seed), 0.02)
        fired |= learner.silent[:4] == 0
    assert bool(fired.all()) == (aux > 0)


@every_learner
def test_features_that_fire_are_not_pushed(architecture: str) -> None:
    # Adam's first step is as long as the rate, whatever the gradient: up for the dead, whose push
    # is larger than any other gradient here, and as it would have been for the others.
    pushed, plain = (learner_with(architecture, dead=5, aux_coefficient=c) for c in (10, 0))
    dead, before = pushed.silent > 100, pushed.parameters["b_enc"].detach().clone()
    for learner in (pushed, plain):
        learner.step(rows(32), 1e-2)
    moved = pushed.parameters["b_enc"].detach() - before
    torch.testing.assert_close(moved[dead], torch.full((5,), 1e-2), rtol=1e-3, atol=1e-6)
    assert torch.equal(pushed.parameters["b_enc"][~dead], plain.parameters["b_enc"][~dead])


@every_learner
def test_gradient_of_a_decoder_penalty_counts(architecture: str) -> None:
    # Far larger than the loss's own, it decides the sign of every element of Adam's first step:
    # the rows move along it, but for their part along themselves.
    learner = learner_with(architecture)
    before, pull = learner.decoder.clone(), 1e4 * rows(WIDTH, seed=3)
    learner.step(rows(32), 1e-4, decoder_gradient=pull)
    across = pull - (pull * before).sum(1, keepdim=True) * before
    moved = learner.decoder - before
    assert (torch.cosine_similarity(moved, -across.sign(), dim=1) > 0.7).all()


@every_learner
def test_decoder_rows_keep_unit_norm(architecture: str) -> None:
    learner = learner_with(architecture)
    for seed in range(5):
        learner.step(rows(32, seed), 1e-2)
    torch.testing.assert_close(learner.decoder.norm(dim=1), torch.ones(WIDTH))


@every_learner
def test_report_and_silence_by_definition(architecture: str) -> None:
    learner, z = learner_with(architecture, dead_after=100), rows(32)
    learner.silent[:4] = torch.tensor([100, 101, 5000, 50])  # two of them are dead
    before = learner.silent.clone()
    with torch.no_grad():
        made = learner.forward(z)
    report = learner.step(z, 1e-3)
    unexplained = (z - made.x_hat).square().sum() / (z - z.mean(0)).square().sum()
    torch.testing.assert_close(report.fvu, unexplained)
    assert float(report.l0) == pytest.approx(float((made.activations > 0).sum()) / 32)
    assert float(report.dead) == pytest.approx(2 / WIDTH)
    fires = (made.activations > 0).any(0)
    assert torch.equal(learner.silent, torch.where(fires, 0, before + 32))


@every_learner
def test_folded_dictionary_on_raw_vectors_equals_the_learner_on_scaled_ones(
    architecture: str,
) -> None:
    learner, x = learner_with(architecture), 3 * rows(50) + 1
    scaling = InputScaling(torch.linspace(0.5, 1.5, DIM), 0.3, 1.0)
    with torch.no_grad():
        made = learner.forward(scaling.apply(x))
    sae = learner.dictionary(scaling)
    assert sae.architecture == architecture
    codes = sae.encode(x)
    torch.testing.assert_close(to_dense(codes, WIDTH), made.activations / scaling.scale)
    torch.testing.assert_close(sae.decode(codes), made.x_hat / scaling.scale + scaling.mean)


@every_learner
def test_a_dictionary_does_not_learn_on(architecture: str) -> None:
    learner = learner_with(architecture)
    sae = learner.dictionary(InputScaling(torch.zeros(DIM), 1.0, 0.0))
    before = {name: value.clone() for name, value in vars(sae).items()}
    learner.step(rows(32), 1e-2)
    for name, value in vars(sae).items():
        assert torch.equal(value, before[name]), name


@every_learner
@pytest.mark.parametrize("sparsity", [None, LAMBDA], ids=["steered", "fixed"])
def test_resumes_to_the_same_bits(architecture: str, sparsity: float | None) -> None:
    learner, resumed = (
        learner_with(architecture, dead=5, sparsity=sparsity, seed=seed) for seed in (0, 1)
    )
    for seed in range(4):
        learner.step(rows(32, seed), 1e-2)
    with torch.no_grad():
        for name, tensor in resumed.tensors().items():
            tensor.copy_(learner.tensors()[name])
    resumed.refresh()
    for seed in range(4, 8):
        for one in (learner, resumed):
            one.step(rows(32, seed), 1e-2)
    assert not torch.equal(learner.decoder, learner_with(architecture).decoder)
    for name, tensor in learner.tensors().items():
        assert torch.equal(resumed.tensors()[name], tensor), name


@every_learner
def test_about_k_features_fire_before_the_first_step(architecture: str) -> None:
    config = TrainConfig(architecture=architecture, expansion=16, k=20)
    learner = LEARNERS[architecture](64, config, dtype=torch.float32)
    z = F.normalize(torch.randn(500, 64, generator=torch.Generator().manual_seed(0)), dim=1)
    with torch.no_grad():
        active = (learner.forward(z).activations > 0).sum() / 500
    assert float(active) == pytest.approx(20, rel=0.15)


def test_firing_level_by_hand() -> None:
    # 15.87 % of a normal distribution lie above one standard deviation, which is 1/sqrt(4).
    assert firing_level(dim=4, width=10_000, k=1587) == pytest.approx(0.5, abs=1e-3)
    assert firing_level(dim=4, width=10, k=5) == pytest.approx(0, abs=1e-6)


@every_learner
def test_more_active_features_than_features_are_refused(architecture: str) -> None:
    with pytest.raises(InvalidInputError, match="k = 24 of 24 features") as caught:
        learner_with(architecture, k=24)
    assert caught.value.field == "k"


ATOMS, PLANTED_DIM = 40, 20


@cache
def planted(count: int, seed: int) -> Tensor:
    """z: scaled sums of two to four of 40 fixed directions."""
    directions = torch.randn(ATOMS, PLANTED_DIM, generator=torch.Generator().manual_seed(7))
    directions = F.normalize(directions, dim=1)
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(count, ATOMS, generator=generator).argsort(dim=1)
    present = order < torch.randint(2, 5, (count, 1), generator=generator)
    x = (present * (1 + torch.rand(present.shape, generator=generator))) @ directions
    mean, scale = directions.sum(0) * 3 * 1.5 / ATOMS, 0.37
    return (x - mean) * scale


def trained(architecture: str, **options: Any) -> DenseLearner:
    settings = {"expansion": 4, "k": 4, "steps": 300, "learning_rate": 4e-3} | options
    config = TrainConfig(architecture=architecture, dead_after=10_000, **settings)
    learner = LEARNERS[architecture](PLANTED_DIM, config, dtype=torch.float32)
    batches = planted(16 * 256, seed=0).split(256)
    with torch.no_grad():
        for step in range(config.steps):
            learner.step(batches[step % 16], learning_rate(config, step))
    return learner


def held_out(learner: DenseLearner) -> tuple[float, float]:
    """(L0, explained variance) of the dictionary on rows that were not trained on."""
    z = planted(4000, seed=1)
    sae = learner.dictionary(InputScaling(torch.zeros(PLANTED_DIM), 1.0, 0.0))
    codes = sae.encode(z)
    error = (z - sae.decode(codes)).square().sum()
    l0 = float((codes.values > 0).sum()) / len(z)
    return l0, float(1 - error / (z - z.mean(0)).square().sum())


@every_learner
@pytest.mark.parametrize("k", [3, 6])
def test_steering_ends_at_k_features_that_explain_the_planted_rows(
    architecture: str, k: int
) -> None:
    l0, explained = held_out(trained(architecture, k=k))
    assert l0 == pytest.approx(k, rel=0.2)
    assert explained > 0.5


@every_learner
def test_a_fixed_weight_stays_and_a_larger_one_means_fewer_features(architecture: str) -> None:
    weak, strong = (trained(architecture, sparsity=weight, steps=200) for weight in (0.003, 0.1))
    assert weak.sparsity.value == pytest.approx(0.003)
    assert held_out(strong)[0] < held_out(weak)[0]

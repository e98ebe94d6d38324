from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from vision_sae.config import TrainConfig
from vision_sae.dictionaries.kinds.batch_topk import BatchTopKLearner, BatchTopKSae
from vision_sae.dictionaries.kinds.matryoshka import MatryoshkaLearner
from vision_sae.dictionaries.kinds.topk import TopKLearner
from vision_sae.dictionaries.shortlist import is_available
from vision_sae.dictionaries.training.scaling import InputScaling
from vision_sae.dictionaries.training.sparse import Kernels, SparseLearner, Weights
from vision_sae.dictionaries.training.sparse_cpu import CpuKernels
from vision_sae.dictionaries.training.sparse_torch import TorchKernels
from vision_sae.dictionaries.training.step import learning_rate
from vision_sae.errors import InvalidInputError

DIM, WIDTH, K = 8, 24, 3
PARAMETERS = ("w_enc", "b_enc", "w_dec", "b_dec")
LEARNERS: dict[str, type[SparseLearner]] = {
    "topk": TopKLearner,
    "batch_topk": BatchTopKLearner,
    "matryoshka": MatryoshkaLearner,
}
KERNELS: dict[str, Callable[[Weights], Kernels]] = {
    "compiled": lambda weights: CpuKernels(weights, dtype=torch.float32),
    "torch": lambda weights: TorchKernels(weights, dtype=torch.float32),
}
if is_available():
    KERNELS["shortlist"] = lambda weights: CpuKernels(weights, dtype=None)
RATE = 1e-3


def learner_with(kernels: str = "compiled", dead: int = 0, **options: Any) -> SparseLearner:
    """A learner in the middle of its work: no two parameters alike, ``dead`` features silent."""
    architecture = options.get("architecture", "topk")
    sections = {"matryoshka": {"prefixes": (0.25, 0.5, 1)}} if architecture == "matryoshka" else {}
    defaults = {"k": K, "expansion": 3, "dead_after": 100, **sections}
    learner = LEARNERS[architecture](DIM, TrainConfig(**(defaults | options)))
    torch.manual_seed(1)
    for name in ("w_enc", "b_enc", "b_dec"):
        parameter = getattr(learner.weights, name)
        parameter.add_(0.3 * torch.randn(parameter.shape))
    learner.silent[torch.randperm(WIDTH)[:dead]] = 101
    learner._kernels = KERNELS[kernels](learner.weights)
    return learner


def rows(n: int = 32, seed: int = 2) -> Tensor:
    return torch.randn(n, DIM, generator=torch.Generator().manual_seed(seed))


def dense_loss(learner: SparseLearner, z: Tensor, p: dict[str, Tensor]) -> Tensor:
    """The textbook loss, with dense tensors throughout."""
    config = learner.config
    pre = (z - p["b_dec"]) @ p["w_enc"].T + p["b_enc"]
    positive = pre.relu()
    if config.architecture == "batch_topk":
        least = positive.flatten().topk(K * len(z)).values[-1]
    else:
        least = positive.topk(K, dim=1).values[:, -1:]
    codes = positive * (positive >= least)
    ends = (6, 12, 24) if config.architecture == "matryoshka" else (24,)
    nested = [codes[:, :end] @ p["w_dec"][:end] + p["b_dec"] for end in ends]
    loss = torch.stack([(z - x_hat).square().sum(1).mean() for x_hat in nested]).mean()

    dead, k_aux = learner.silent > config.dead_after, DIM // 2
    if dead.any():
        error = (z - nested[-1]).detach()
        of_dead = pre.masked_fill(~dead, -torch.inf)
        top = of_dead.topk(min(k_aux, int(dead.sum())), dim=1).indices
        aux = (pre * torch.zeros_like(pre).scatter(1, top, 1.0)).relu() @ p["w_dec"]  # no b_dec
        scale = config.aux_coefficient * min(1, int(dead.sum()) / k_aux)
        loss = loss + scale * (error - aux).square().sum(1).mean()
    return loss


@pytest.mark.parametrize("dead", [0, 2, 4, 15], ids=lambda n: f"{n}_dead")
@pytest.mark.parametrize("architecture", LEARNERS)
@pytest.mark.parametrize("kernels", KERNELS)
def test_first_step_is_adam_on_the_gradients_of_autograd(
    kernels: str, architecture: str, dead: int
) -> None:
    learner, z = learner_with(kernels, dead, architecture=architecture), rows()
    before = {name: getattr(learner.weights, name).clone() for name in PARAMETERS}
    p = {name: value.clone().requires_grad_() for name, value in before.items()}
    dense_loss(learner, z, p).backward()
    learner.step(z, RATE)
    for name in PARAMETERS:
        gradient = p[name].grad
        assert gradient is not None
        if name == "w_dec":  # loses its part along each row
            radial = (gradient * before[name]).sum(1, keepdim=True)
            gradient = gradient - radial * before[name]
        # After one step from zero Adam's first moment is a tenth of the gradient.
        moment = getattr(learner.weights, f"m_{name}") / 0.1
        torch.testing.assert_close(moment, gradient, rtol=1e-4, atol=1e-5)
        moved = before[name] - RATE * gradient / (gradient.abs() + 1e-8)
        if name == "w_dec":
            moved = moved / moved.norm(dim=1, keepdim=True)
        clear = gradient.abs() > 1e-4  # below, the sign of the step is rounding
        torch.testing.assert_close(
            getattr(learner.weights, name)[clear], moved[clear], rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("architecture", ["topk", "matryoshka"])
def test_compiled_loops_stay_with_the_torch_operations(architecture: str) -> None:
    penalty = 1e-2 * torch.randn(WIDTH, DIM)
    learners = [learner_with(name, 5, architecture=architecture) for name in KERNELS]
    for seed in range(20):
        for learner in learners:
            report = learner.step(rows(seed=seed), RATE, decoder_gradient=penalty)
    by_torch = learners[1].tensors()
    for learner in learners:
        for name, tensor in learner.tensors().items():
            torch.testing.assert_close(tensor, by_torch[name], rtol=1e-3, atol=1e-4)
    assert float(report.l0) <= K


def test_choosing_in_low_precision_keeps_values_in_full() -> None:
    learner = learner_with()
    learner._kernels = CpuKernels(learner.weights, dtype=torch.bfloat16)
    z, w = rows(), learner.weights
    forward = learner.forward(z)
    pre = (z - w.b_dec) @ w.w_enc.T + w.b_enc
    taken = pre.gather(1, forward.features.long()).relu()
    torch.testing.assert_close(forward.values, taken, rtol=1e-5, atol=1e-6)


def test_low_precision_copy_follows_the_weights() -> None:
    learner = learner_with()
    kernels = learner._kernels = CpuKernels(learner.weights, dtype=torch.bfloat16)
    learner.step(rows(), RATE)
    assert torch.equal(kernels._low, learner.weights.w_enc.bfloat16())


def test_aux_coefficient_of_zero_leaves_dead_features_alone() -> None:
    learner = learner_with(dead=15, aux_coefficient=0.0)
    learner.step(rows(1), RATE)
    assert (learner.weights.m_b_enc != 0).sum() <= K


def test_aux_k_revives_dead_features() -> None:
    revived = {}
    for aux in (0.0, 1 / 32):
        learner = learner_with(k=1, aux_coefficient=aux, dead_after=1000)
        weak = slice(4, WIDTH)  # the bias of the four others keeps them from ever being largest
        learner.weights.w_enc[weak] *= 0.01
        learner.weights.b_enc[weak] = 0
        learner.weights.b_enc[:4] = 1
        learner.silent.zero_()
        for seed in range(200):
            learner.step(rows(256, seed), 5e-3)
        revived[aux] = float((learner.silent[weak] < 1000).float().mean())
    assert revived[0.0] < 0.2
    assert revived[1 / 32] > 0.8


def test_decoder_rows_keep_unit_norm() -> None:
    learner = learner_with()
    for _ in range(5):
        learner.step(rows(), RATE)
    torch.testing.assert_close(learner.decoder.norm(dim=1), torch.ones(WIDTH))


def test_initial_encoder_is_the_decoder_of_unit_rows() -> None:
    weights = TopKLearner(DIM, TrainConfig(k=K)).weights
    assert torch.equal(weights.w_enc, weights.w_dec)
    assert weights.w_enc.data_ptr() != weights.w_dec.data_ptr()
    torch.testing.assert_close(weights.w_dec.norm(dim=1), torch.ones(16 * DIM))


def test_learning_rate_by_hand() -> None:
    # 10 steps: 2 of warm-up, 5 of decay. Warm-up: 1/2, 2/2. Decay: (10 - done) / 5 from done = 5.
    config = TrainConfig(k=K, steps=10, warmup=0.2, decay=0.5, learning_rate=1.0)
    rates = [learning_rate(config, done) for done in range(10)]
    assert rates == pytest.approx([0.5, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])


def test_silence_counts_rows_since_a_feature_fired() -> None:
    learner = learner_with()
    for seed in range(3):
        learner.step(rows(1, seed), RATE)
    assert set(learner.silent.tolist()) <= {0, 1, 2, 3}
    assert 0 < (learner.silent == 0).sum() <= K
    assert (learner.silent == 3).sum() >= WIDTH - 3 * K


def test_report_of_a_perfect_dictionary() -> None:
    learner = TopKLearner(DIM, TrainConfig(k=DIM, expansion=2))
    both = torch.cat([torch.eye(DIM), -torch.eye(DIM)])
    learner.weights.w_enc.copy_(both)
    learner.weights.w_dec.copy_(both)
    learner.refresh()
    report = learner.step(torch.randn(64, DIM), 0.0)
    assert float(report.fvu) < 1e-4
    assert float(report.l0) == DIM


def test_report_is_about_the_mean_of_the_batch() -> None:
    # With no feature firing the reconstruction is b_dec = 0: the error is |z|^2 = 50, the spread
    # about the mean (3, 0) is 32 / ... : rows (7, 0) and (-1, 0) lie 4 from it, 16 + 16 = 32.
    learner = TopKLearner(2, TrainConfig(k=1, expansion=1))
    learner.weights.b_enc.fill_(-100)
    report = learner.step(torch.tensor([[7.0, 0.0], [-1.0, 0.0]]), 0.0)
    assert float(report.fvu) == pytest.approx(50 / 32)
    assert float(report.l0) == 0


@pytest.mark.parametrize("architecture", ["topk", "matryoshka"])
def test_folded_dictionary_on_raw_vectors_equals_the_learner_on_scaled_ones(
    architecture: str,
) -> None:
    scaling = InputScaling(torch.linspace(-1, 1, DIM), 0.7, 1.0)
    learner, x = learner_with(architecture=architecture), torch.randn(20, DIM)
    sae, forward = learner.dictionary(scaling), learner.forward(scaling.apply(x))
    codes = sae.encode(x)
    fires = forward.values > 0
    assert torch.equal(codes.indices[codes.values > 0], forward.features[fires].long())
    torch.testing.assert_close(codes.values[codes.values > 0], forward.values[fires] / 0.7)
    z_hat = forward.error + scaling.apply(x)
    torch.testing.assert_close(sae.decode(codes), z_hat / 0.7 + scaling.mean)


def test_batch_topk_fires_k_times_the_rows_and_remembers_the_least() -> None:
    learner, z = learner_with(architecture="batch_topk"), rows(50)
    forward = learner.forward(z)
    assert int((forward.values > 0).sum()) == 50 * K
    assert forward.counts.float().std() > 0  # rows differ
    least = float(forward.values[forward.values > 0].min())
    learner.step(z, 0.0)
    assert float(learner.threshold) == pytest.approx(least)
    # The average forgets: over the last tenth of the steps, of which there are 20 after this one,
    # and over 100 of them at most.
    later = learner.forward(rows(50, seed=3)).values
    last = float(later[later > 0].min())
    learner.step_number = 19
    learner.step(rows(50, seed=3), 0.0)
    assert float(learner.threshold) == pytest.approx((least + last) / 2)
    learner.step_number = 10_000
    learner.threshold.fill_(least)
    learner.step(rows(50, seed=3), 0.0)
    assert float(learner.threshold) == pytest.approx(0.99 * least + 0.01 * last)


def test_batch_topk_dictionary_uses_the_threshold_on_raw_vectors() -> None:
    learner = learner_with(architecture="batch_topk")
    learner.threshold.fill_(0.5)
    sae = learner.dictionary(InputScaling(torch.zeros(DIM), 2.0, 0.0))
    assert isinstance(sae, BatchTopKSae)
    assert float(sae.threshold) == 0.25
    values = sae.encode(rows()).values
    assert values[values > 0].min() > 0.25


def test_another_loss_by_the_reconstruction_gives_the_gradients_of_autograd() -> None:
    learner, z = learner_with(), rows()
    forward, target = learner.forward(z), rows(seed=5)
    by_reconstruction = (forward.error + z - target) * 2
    p = {name: getattr(learner.weights, name).clone().requires_grad_() for name in PARAMETERS}
    pre = (z - p["b_dec"]) @ p["w_enc"].T + p["b_enc"]
    kept = torch.zeros_like(pre).scatter(1, pre.topk(K, dim=1).indices, 1.0)
    x_hat = (pre * kept).relu() @ p["w_dec"] + p["b_dec"]
    (x_hat - target).square().sum().backward()
    learner.backward(learner.gradients_at(forward, by_reconstruction[None]), RATE)
    for name in ("w_enc", "b_enc", "b_dec"):
        moment = getattr(learner.weights, f"m_{name}") / 0.1
        torch.testing.assert_close(moment, p[name].grad, rtol=1e-4, atol=1e-4)


def test_adopted_dictionary_is_given_back() -> None:
    scaling = InputScaling(torch.linspace(-1, 1, DIM), 0.7, 1.0)
    sae = learner_with().dictionary(scaling)
    learner = TopKLearner(DIM, TrainConfig(k=K, expansion=3, seed=9))
    learner.adopt(sae, scaling)
    back = learner.dictionary(scaling)
    for name in PARAMETERS:
        torch.testing.assert_close(getattr(back, name), getattr(sae, name))


def test_more_active_features_than_features_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="k = 25 .* 24 features") as caught:
        TopKLearner(DIM, TrainConfig(k=25, expansion=3))
    assert caught.value.field == "k"


@pytest.mark.parametrize("prefixes", [(0.5, 0.25, 1), (0.5,), (0.0, 1), ()])
def test_prefixes_that_do_not_rise_to_the_whole_are_refused(prefixes: tuple[float, ...]) -> None:
    with pytest.raises(InvalidInputError, match="rising shares that end in 1") as caught:
        learner_with(architecture="matryoshka", matryoshka={"prefixes": prefixes})
    assert caught.value.field == "train.matryoshka.prefixes"

"""A training step on a GPU neither mixes devices nor waits for the device.

Under FakeTensorMode tensors on ``cuda`` have shapes and no numbers, so mixed devices raise, and so
does every read of a number (``item``, ``bool``, ``tolist``), which would make the host wait. Copies
between host and device are allowed in the mode, so `NoTransfers` refuses them. Triton kernels
cannot run in this mode, so torch's operations take the step. Nor can autograd's engine, which asks
the driver for streams: here the gradients that it would compute are zeros.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from tests.worlds.tiny import small_section
from vision_sae.config import TrainConfig, with_values
from vision_sae.dictionaries import nnls, protocol
from vision_sae.dictionaries.architectures import ARCHITECTURES, Fitting
from vision_sae.dictionaries.ensemble import Bagging, Boosting
from vision_sae.dictionaries.kinds.jumprelu import _JumpRelu
from vision_sae.dictionaries.protocol import Dictionary
from vision_sae.dictionaries.training import choice, dense, penalties, sparse_torch
from vision_sae.dictionaries.training.distributed import Group
from vision_sae.dictionaries.training.loop import new_learner
from vision_sae.dictionaries.training.penalties import agreement_gradients, orthogonality_gradient
from vision_sae.dictionaries.training.scaling import InputScaling
from vision_sae.dictionaries.training.sparse import SparseLearner
from vision_sae.dictionaries.training.step import Learner

DIM, ROWS = 16, 12
CONFIG = TrainConfig(expansion=3, k=4, batch_size=ROWS, dead_after=1000)
LEARNERS = [a.name for a in ARCHITECTURES if a.learner is not None]
K_SPARSE = [
    a.name for a in ARCHITECTURES if a.learner is not None and issubclass(a.learner, SparseLearner)
]
FITTED = [a.name for a in ARCHITECTURES if a.fit is not None]


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorMode]:
    """The mode, as though on a GPU that is fastest in bfloat16 and has no Triton."""
    for module in (dense, penalties, sparse_torch):
        monkeypatch.setattr(module, "training_dtype", lambda _: torch.bfloat16)
    monkeypatch.setattr(choice, "triton_runs", lambda _: False)
    mode = FakeTensorMode(allow_non_fake_inputs=False)
    monkeypatch.setattr(torch.autograd, "grad", zero_gradients)
    with mode:
        yield mode


def zero_gradients(output: Tensor, inputs: Sequence[Tensor], *_: Tensor) -> tuple[Tensor, ...]:
    """Stands for `torch.autograd.grad`."""
    assert output.requires_grad
    return tuple(torch.zeros_like(t, requires_grad=False) for t in inputs)


class NoTransfers(TorchDispatchMode):
    """Refuses operations that take a tensor on one side and give one on the other."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        sides = [
            {leaf.device.type for leaf in tree_leaves(values) if isinstance(leaf, Tensor)}
            for values in ((args, kwargs), result)
        ]
        if {"cpu", "cuda"} <= sides[0] | sides[1]:
            raise AssertionError(f"{func} moves a tensor between host and device")
        return result


def rows(count: int = ROWS) -> Tensor:
    return torch.randn(count, DIM, device="cuda")


def learner_of(architecture: str, **settings: Any) -> Learner:
    values = {"architecture": architecture} | small_section(architecture) | settings
    config = with_values(CONFIG, "train", values)
    return new_learner(DIM, config, rows, group=Group(), device="cuda")


def test_reading_and_moving_are_errors_here() -> None:
    """What the other tests rely on."""
    with pytest.raises(DataDependentOutputException):
        bool((rows() > 0).any())
    with NoTransfers(), pytest.raises(AssertionError, match="moves a tensor"):
        torch.zeros(3).to("cuda")
    with pytest.raises(RuntimeError, match="same device"):
        rows() + torch.zeros(DIM)


@pytest.mark.parametrize("architecture", LEARNERS)
def test_a_step_reads_nothing_from_the_device(architecture: str) -> None:
    learner = learner_of(architecture)
    penalty = orthogonality_gradient(learner.decoder, 1.0, (0, 0))
    for gradient in (None, penalty):
        with torch.no_grad(), NoTransfers():
            report = learner.step(rows(), 1e-3, decoder_gradient=gradient)
    for figure in report:
        assert figure.device.type == "cuda"
    for name, tensor in learner.tensors().items():
        assert tensor.device.type == ("cpu" if name == "steps" else "cuda"), name


@pytest.mark.parametrize("architecture", K_SPARSE)
def test_a_step_with_dead_features_reads_nothing_either(architecture: str) -> None:
    learner = learner_of(architecture)
    assert isinstance(learner, SparseLearner)
    learner._dead._most, learner._dead._rows = 8, 10**6
    with NoTransfers():
        learner.step(rows(), 1e-3)


def test_the_gradient_of_jump_relu_reads_nothing() -> None:
    """Its backward pass is our own, and autograd does not run here."""
    excess, fires, threshold = rows(), rows().sign().relu(), rows()[0].exp()
    context = SimpleNamespace(saved_tensors=(excess, fires, threshold), bandwidth=0.5)
    with NoTransfers():
        by_x, by_threshold, _ = _JumpRelu.backward(context, rows(), rows().sum())
    assert by_x.shape == excess.shape
    assert by_threshold.shape == threshold.shape


def test_penalties_between_dictionaries_read_nothing() -> None:
    decoders = [learner_of("topk", seed=seed).decoder for seed in (0, 1)]
    assert all(g.device.type == "cuda" for g in agreement_gradients(decoders, 1.0, (0,)))


@pytest.mark.parametrize("architecture", LEARNERS)
def test_a_trained_dictionary_is_in_host_memory(architecture: str) -> None:
    dictionary = learner_of(architecture).dictionary(InputScaling(torch.zeros(DIM), 1.0, 0.0))
    tensors = [t for t in vars(dictionary).values() if isinstance(t, Tensor)]
    assert all(t.device.type == "cpu" for t in tensors)


def fitted(architecture: str) -> Dictionary:
    """A dictionary that is fitted in a pass, with real numbers."""
    generator = np.random.default_rng(0)
    vectors = torch.from_numpy(np.abs(generator.normal(size=(60, DIM)))).float()
    fit = ARCHITECTURES[architecture].fit
    assert fit is not None
    kind = ARCHITECTURES[architecture].settings()
    wanted = Fitting(dim=DIM, width=DIM, k=3, rows=60, seed=0, settings=kind)
    return fit([vectors], wanted)


def trained(architecture: str) -> Dictionary:
    config = with_values(
        CONFIG, "train", {"architecture": architecture} | small_section(architecture)
    )
    points: Callable[[int], Tensor] = partial(torch.ones, DIM)
    learner = new_learner(DIM, config, lambda n: points().expand(n, DIM), group=Group())
    return learner.dictionary(InputScaling(torch.zeros(DIM), 1.0, 0.0))


def on_fake_gpu(dictionary: Dictionary, mode: FakeTensorMode) -> Dictionary:
    """A copy whose tensors are on ``cuda``, without their numbers."""
    moved = copy.copy(dictionary)
    for name, value in vars(dictionary).items():
        if name == "_gram":  # stays in host memory, where the codes are solved for
            setattr(moved, name, mode.from_tensor(value))
        elif isinstance(value, Tensor):
            setattr(moved, name, mode.from_tensor(value).to("cuda"))
    return moved


@pytest.mark.parametrize("architecture", [*LEARNERS, *FITTED])
def test_codes_and_reconstructions_wait_for_nothing_but_the_number_of_slots(
    monkeypatch: pytest.MonkeyPatch, fake: FakeTensorMode, architecture: str
) -> None:
    """Codes of no fixed number of slots read the largest number of active features, once."""
    with _disable_current_modes():
        real = (trained if architecture in LEARNERS else fitted)(architecture)
    dictionary = on_fake_gpu(real, fake)
    monkeypatch.setattr(protocol, "_largest_count", lambda _: 5)
    # NNLS solves for its codes on the CPU, in float64.
    monkeypatch.setattr(
        nnls, "non_negative_codes", lambda targets, gram, k: torch.zeros(targets.shape)
    )
    for some in (dictionary, Bagging([dictionary] * 2), Boosting([dictionary] * 2)):
        codes = some.encode(rows())
        x_hat = some.decode(codes)
        assert codes.indices.device.type == codes.values.device.type == x_hat.device.type == "cuda"
        assert x_hat.shape == (ROWS, DIM)

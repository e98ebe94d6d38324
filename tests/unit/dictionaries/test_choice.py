from __future__ import annotations

import pytest
import torch

from vision_sae.config import TrainConfig
from vision_sae.dictionaries.kinds.topk import TopKLearner
from vision_sae.dictionaries.training import choice
from vision_sae.dictionaries.training.distributed import Group, own_device
from vision_sae.dictionaries.training.sparse_cpu import CpuKernels
from vision_sae.dictionaries.training.sparse_torch import TorchKernels
from vision_sae.errors import InvalidInputError


def test_a_cpu_trains_with_the_compiled_loops() -> None:
    weights = TopKLearner(8, TrainConfig(k=2)).weights
    assert isinstance(choice.kernels_for(weights, rows=9, k=2, group=Group()), CpuKernels)


def test_a_race_leaves_the_weights_as_they_are() -> None:
    weights = TopKLearner(8, TrainConfig(k=2)).weights
    before = [t.clone() for t in weights]
    assert choice.step_seconds(TorchKernels, weights, rows=9, k=2) > 0
    assert all(torch.equal(a, b) for a, b in zip(weights, before, strict=True))


@pytest.mark.parametrize(("triton", "faster"), [(1.0, True), (3.0, False)])
def test_the_faster_kernels_train(
    monkeypatch: pytest.MonkeyPatch, triton: float, faster: bool
) -> None:
    pytest.importorskip("triton")
    seconds = {"TorchKernels": 2.0, "TritonKernels": triton}
    monkeypatch.setattr(choice, "step_seconds", lambda make, *_, **__: seconds[make.__name__])
    weights = TopKLearner(8, TrainConfig(k=2)).weights
    assert choice.triton_is_faster(weights, rows=9, k=2) is faster


def test_torch_trains_where_triton_fails(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("triton")

    def step_seconds(make: type, *_: object, **__: object) -> float:
        if make is not TorchKernels:
            raise RuntimeError("no compiler")
        return 1.0

    monkeypatch.setattr(choice, "step_seconds", step_seconds)
    weights = TopKLearner(8, TrainConfig(k=2)).weights
    assert not choice.triton_is_faster(weights, rows=9, k=2)
    assert "no compiler" in caplog.text


def test_a_process_of_torchrun_has_the_gpu_of_its_local_rank(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert own_device("cuda:1") == "cuda:1"
    monkeypatch.setenv("WORLD_SIZE", "5")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert own_device("cuda") == own_device("cuda:0") == "cuda:3"
    assert own_device("cpu") == "cpu"
    monkeypatch.setenv("LOCAL_RANK", "4")
    with pytest.raises(InvalidInputError, match="process 4 .* no GPU of its own: there are 4"):
        own_device("cuda")

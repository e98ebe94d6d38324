"""Training on a GPU computes what training on the CPU does, and no step waits for the GPU.

Not yet run on a GPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.worlds import triton_cases
from tests.worlds.tiny import small_section, write_store
from vision_sae.config import TrainConfig, with_values
from vision_sae.dictionaries.architectures import ARCHITECTURES
from vision_sae.dictionaries.training import choice, dense, sparse_cpu, sparse_torch
from vision_sae.dictionaries.training.distributed import Group
from vision_sae.dictionaries.training.feeding import on_device
from vision_sae.dictionaries.training.loop import new_learner, train
from vision_sae.dictionaries.training.penalties import orthogonality_gradient
from vision_sae.dictionaries.training.sparse import SparseLearner
from vision_sae.dictionaries.training.step import Learner

DIM, ROWS = 24, 96
LEARNERS = [a.name for a in ARCHITECTURES if a.learner is not None]
CONFIG = TrainConfig(expansion=4, k=5, batch_size=ROWS, dead_after=400, learning_rate=1e-3)


def rows(count: int = ROWS, seed: int = 0) -> Tensor:
    return torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed)) / DIM**0.5


def learner_on(device: str, architecture: str, *, triton: bool | None = None) -> Learner:
    """A learner in float32; ``triton`` decides its kernels on a GPU, where the race would."""
    values = {"architecture": architecture} | small_section(architecture)
    config = with_values(CONFIG, "train", values)
    with pytest.MonkeyPatch.context() as patch:
        for module in (dense, sparse_cpu, sparse_torch):
            patch.setattr(module, "training_dtype", lambda *_: torch.float32)
        if triton is not None:
            patch.setattr(choice, "triton_runs", lambda _: triton)
            patch.setattr(choice, "triton_is_faster", lambda *_, **__: True)
        choice._choices.clear()
        return new_learner(DIM, config, lambda n: rows(n).to(device), group=Group(), device=device)


every_kernel = pytest.mark.parametrize("triton", [True, False], ids=["triton", "torch"])


@every_kernel
@pytest.mark.parametrize("architecture", LEARNERS)
def test_steps_are_those_of_the_cpu(architecture: str, triton: bool) -> None:
    """Twelve steps, of which the last ones have dead features."""
    on_cpu = learner_on("cpu", architecture)
    on_gpu = learner_on("cuda:0", architecture, triton=triton)
    for name, tensor in on_gpu.tensors().items():  # the encoder of archetypal differs by rounding
        tensor.copy_(on_cpu.tensors()[name])
    on_gpu.refresh()
    for step in range(12):
        z = rows(seed=step)
        with torch.no_grad():
            wanted = on_cpu.step(z, 1e-3)
            report = on_gpu.step(z.cuda(), 1e-3)
        for name, figure in report._asdict().items():
            torch.testing.assert_close(
                figure.float().cpu(), getattr(wanted, name).float(), rtol=1e-3, atol=1e-5
            )
    for name, tensor in on_gpu.tensors().items():
        expected = on_cpu.tensors()[name]
        apart = (tensor.cpu() - expected).abs() > 1e-4 + 1e-3 * expected.abs()
        # Adam's steps are as long for a gradient that is nothing but rounding: few numbers may be.
        assert float(apart.float().mean()) < 0.01, name


@every_kernel
@pytest.mark.parametrize("architecture", LEARNERS)
def test_no_step_waits_for_the_gpu(
    without_waiting: Callable[[], AbstractContextManager[None]], architecture: str, triton: bool
) -> None:
    learner = learner_on("cuda:0", architecture, triton=triton)
    batches = [rows(seed=i).cuda() for i in range(8)]
    if isinstance(learner, SparseLearner):
        learner.silent[:7] = CONFIG.dead_after + 1
        learner.refresh()
    learner.step(batches[0], 1e-3)  # compiles, and looks for dead features
    with without_waiting():
        for z in batches[1:]:
            penalty = orthogonality_gradient(learner.decoder, 0.1, (0, 1))
            learner.step(z, 1e-3, decoder_gradient=penalty)
    assert torch.isfinite(learner.decoder).all()


@pytest.mark.parametrize("case", triton_cases.CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("kernel", triton_cases.KERNELS)
def test_a_compiled_kernel_agrees_with_torch(kernel: str, case: triton_cases.Case) -> None:
    pytest.importorskip("triton")
    error = triton_cases.KERNELS[kernel](triton_cases.problem(case, "cuda:0"))
    assert error <= 1e-5


@every_kernel
def test_equal_steps_have_equal_bits(triton: bool) -> None:
    """Processes that train together send no weights, so nothing may be summed in any order."""
    learners = [learner_on("cuda:0", "matryoshka", triton=triton) for _ in range(2)]
    for step in range(5):
        for learner in learners:
            learner.step(rows(seed=step).cuda(), 1e-3)
    one, other = (learner.tensors() for learner in learners)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_batches_arrive_whole_and_in_order() -> None:
    sent = [rows(seed=i) for i in range(20)]

    def endless() -> Any:
        while True:
            yield from sent

    arriving = on_device(endless(), "cuda:0")
    for expected in [*sent, *sent]:
        assert torch.equal(next(arriving).cpu(), expected)
    arriving.close()


def test_a_training_on_the_gpu_learns_what_one_on_the_cpu_does(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", [np.random.default_rng(0).normal(size=(200, 4, 16))])
    config = CONFIG.model_copy(update={"steps": 30, "checkpoint_steps": 10})
    checkpoint = tmp_path / "c.safetensors"
    gpu = train(store, config, checkpoint=checkpoint, progress=False, device="cuda:0")
    cpu = train(store, config, progress=False)
    cosines = (gpu.decoder * cpu.decoder).sum(1)
    assert float(cosines.median()) > 0.99
    assert checkpoint.is_file()


@pytest.mark.slow
def test_two_gpus_train_what_one_does(tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    write_store(tmp_path / "store", [np.random.default_rng(0).normal(size=(200, 4, 16))])
    program = tmp_path / "program.py"
    program.write_text(f"""
import os
from pathlib import Path
import torch
from safetensors.torch import save_file
from vision_sae.activations.store import ActivationStore
from vision_sae.config import TrainConfig
from vision_sae.dictionaries.training import sparse_torch
from vision_sae.dictionaries.training.loop import train

sparse_torch.training_dtype = lambda _: torch.float32
torch.backends.cuda.matmul.allow_tf32 = False
root = Path({str(tmp_path)!r})
config = TrainConfig(expansion=3, k=4, steps=30, batch_size=101, dead_after=400)
made = train(ActivationStore(root / "store"), config, progress=False, device="cuda")
rank, size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
save_file({{"decoder": made.decoder.contiguous()}}, root / f"{{size}}-{{rank}}.safetensors")
""")
    together = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    for command in ([str(program)], [*together, str(program)]):
        run = subprocess.run(
            [sys.executable, *command],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=250,
            check=False,
        )
        assert run.returncode == 0, run.stderr[-4000:]
    from safetensors.torch import load_file

    alone, first, second = (
        load_file(tmp_path / f"{name}.safetensors")["decoder"] for name in ("1-0", "2-0", "2-1")
    )
    assert torch.equal(first, second)
    torch.testing.assert_close(first, alone, rtol=1e-4, atol=1e-5)

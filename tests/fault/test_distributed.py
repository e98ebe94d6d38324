"""Two processes that train together make what one makes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.worlds.tiny import write_store
from vision_sae.config import TrainConfig
from vision_sae.dictionaries.artifact import load_dictionary
from vision_sae.dictionaries.pipeline import train_dictionary
from vision_sae.dictionaries.training import dense

pytestmark = pytest.mark.slow
BASE = {"expansion": 3, "k": 4, "steps": 30, "batch_size": 101, "dead_after": 400}

_IN_FLOAT32 = """
import runpy
import torch
from vision_sae.dictionaries.training import dense

dense.training_dtype = lambda _: torch.float32
runpy.run_module("vision_sae.cli", run_name="__main__")
"""
"""The command line, whatever precision is fastest."""


def in_two_processes(*program: str) -> None:
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
        *("--master-port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"),
        *program,
    ]
    run = subprocess.run(
        command,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-4000:]


@pytest.mark.parametrize("architecture", ["topk", "batch_topk", "matryoshka", "relu"])
def test_two_processes_train_what_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str
) -> None:
    # Each process measures for itself in what precision products are fastest.
    monkeypatch.setattr(dense, "training_dtype", lambda _: torch.float32)
    program = tmp_path / "program.py"
    program.write_text(_IN_FLOAT32)
    random = np.random.default_rng(0)
    store = write_store(tmp_path / "store", [random.normal(size=(200, 4, 16))])
    config = TrainConfig(**(BASE | {"architecture": architecture}))  # type: ignore[arg-type]
    train_dictionary(store, tmp_path / "one", config, {"all": store}, progress=False)
    (tmp_path / "config.yaml").write_text(
        "train:\n"
        + "".join(f"  {k}: {v}\n" for k, v in config.model_dump(include=set(BASE)).items())
    )
    in_two_processes(
        *(str(program), "train", str(tmp_path / "store"), str(tmp_path / "two")),
        *("--heldout", str(tmp_path / "store"), "--architecture", architecture),
        *("--config", str(tmp_path / "config.yaml")),
    )
    one, two = (load_dictionary(tmp_path / name)[0] for name in ("one", "two"))
    # Where every feature has a gradient, thirty steps of Adam enlarge what rounding begins.
    apart = 1e-3 if architecture == "relu" else 1e-5
    torch.testing.assert_close(two.decoder, one.decoder, rtol=1e-4, atol=apart)
    torch.testing.assert_close(two.bias, one.bias, rtol=1e-4, atol=apart)
    assert not list(tmp_path.glob(".*checkpoints"))


def test_a_process_joins_once_and_leaves_when_it_ends(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("""
import atexit, os
import torch
import torch.distributed as dist

@atexit.register  # the first to be registered is the last to be called
def check():
    os._exit(1 if dist.is_initialized() else 0)

from vision_sae.dictionaries.training.distributed import join_group

for time in range(2):
    group = join_group()
    assert group.size == 2
    if group.gather(torch.full((1,), group.rank), 2).tolist() != [0, 1]:
        os._exit(2)
""")
    in_two_processes(str(program))

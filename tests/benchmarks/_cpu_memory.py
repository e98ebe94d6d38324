"""The memory of wide trainings: the most that a process took, in GiB, and the rate."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time

import torch

from vision_sae.config import TrainConfig
from vision_sae.dictionaries.kinds.topk import TopKLearner

DIM, WIDTH = 384, 131_328
_STEPS, _ROWS = 6, 4096
_DEAD = 0.5
"""The share of features that is dead in half of the steps, so that AuxK is measured too."""


def train_wide() -> dict[str, float]:
    """{peak_gib, samples_per_s} of a TopK training, in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks._cpu_memory"]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return figures


def measure() -> dict[str, float]:
    """The figures of this process."""
    config = TrainConfig(expansion=WIDTH // DIM, k=32, steps=1000)
    learner = TopKLearner(DIM, config)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(_ROWS, DIM, generator=generator) / DIM**0.5
    learner.step(rows, 1e-4)
    begin = time.perf_counter()
    for _ in range(_STEPS):
        learner.step(rows, 1e-4)
    seconds = time.perf_counter() - begin
    learner.silent[: round(_DEAD * WIDTH)] = config.dead_after + 1
    learner.step(rows, 1e-4)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"peak_gib": round(peak, 2), "samples_per_s": round(_STEPS * _ROWS / seconds, 1)}


if __name__ == "__main__":
    print(json.dumps(measure()))

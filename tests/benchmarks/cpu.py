"""How well the cores of this machine are used.

``python -m tests.benchmarks.cpu --work DIR`` prints JSON:

isa           the instructions that matter and the variables that limit them
choose        choosing features, beside the product alone; see `_cpu_choosing`
encode        encoding by a TopK dictionary, beside the dense way
cores_busy    CPU time over wall time of building and of describing a bundle, as commands run them
command_start_ratio  seconds of a command that trains five steps, over those of ``import torch``
peak_gib      memory of a training of 131,328 features, with its rate

On a CPU with more than AVX2, run it a second time with `LIMITED` in the environment to measure what
a CPU with AVX2 alone does. Other figures of the CPU have benchmarks of their own: ``sae_training``
(beside sparsify), ``harvest`` (beside the bare model) and ``patch_index`` (the type it chooses).
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks import _cpu_choosing, _cpu_memory
from tests.benchmarks._device import report
from vision_sae.activations.store import ActivationStore
from vision_sae.demo import CORPUS
from vision_sae.dictionaries import kernels_shortlist

LIMITED = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "NUMBA_CPU_FEATURES": "+avx,+avx2,+bmi,+bmi2,+fma,+lzcnt,+popcnt,+sse4.2",
    "NUMBA_CPU_NAME": "haswell",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
}
"""Variables that keep torch, its libraries and Numba from more than AVX2."""
_PICTURES, _ROWS = 120, 4096


def command(*words: str) -> tuple[float, float]:
    """(seconds, CPU seconds) of a command of vision-sae."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    script = "from vision_sae.cli import app; app()"
    subprocess.run([sys.executable, "-c", script, *words], check=True, capture_output=True)
    wall = time.perf_counter() - begin
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def fastest(words: Sequence[str]) -> float:
    """Seconds of a Python process, the least of three; the first writes byte code."""
    times = []
    for _ in range(4):
        begin = time.perf_counter()
        subprocess.run([sys.executable, *words], check=True, capture_output=True)
        times.append(time.perf_counter() - begin)
    return min(times[1:])


def bundles(work: Path) -> dict[str, Any]:
    """A store, a dictionary and a bundle of pictures of the demo, made and described."""
    store, dictionary, bundle = (work / name for name in ("store", "dictionary", "bundle"))
    command("harvest", str(CORPUS / "train"), str(store), "--limit", str(_PICTURES))
    command("train", str(store), str(dictionary), "--steps", "100")
    steps = {
        "build": ("build", str(store), str(dictionary), str(bundle)),
        "describe": ("describe", str(bundle)),
    }
    busy = {}
    for name, words in steps.items():
        wall, cpu = command(*words)
        busy[name] = {"seconds": round(wall, 1), "cores_busy": round(cpu / wall, 2)}
    torch_seconds = fastest(("-c", "import torch"))
    few = ("--steps", "5", "--batch-size", "512", "--overwrite")
    script = "from vision_sae.cli import app; app()"
    training = fastest(("-c", script, "train", str(store), str(work / "again"), *few))
    return {"cores_busy": busy, "command_start_ratio": round(training / torch_seconds, 2)}


def measured(arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    work: Path = arguments.work
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    of_bundles = bundles(work)
    store = ActivationStore(work / "store")
    site = store.site(None)
    rows = next(store.batches(site, _ROWS)).float() - store.mean(site)
    rows /= rows.square().sum(1).mean().sqrt()
    tile = kernels_shortlist.tile()
    return {
        "threads": torch.get_num_threads(),
        "isa": {
            "torch": torch.backends.cpu.get_cpu_capability(),
            "shortlist": None if tile is None else tile.instruction,
            "limits": {name: os.environ[name] for name in LIMITED if name in os.environ},
        },
        "choose": {str(w): _cpu_choosing.choosing(rows, w) for w in _cpu_choosing.WIDTHS},
        "encode": {str(w): _cpu_choosing.encoding(rows, w) for w in _cpu_choosing.WIDTHS},
        **of_bundles,
        "peak_gib": {"train_131328": _cpu_memory.train_wide()},
    }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("runs/cpu"))
    report(parser, measured, indent=1)


if __name__ == "__main__":
    main()

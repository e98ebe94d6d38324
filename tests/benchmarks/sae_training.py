"""Training a TopK autoencoder against its peers, on the same patches of a real ViT.

``python -m tests.benchmarks.sae_training`` prints JSON. It needs the extra ``bench``:
``pip install -e '.[cpu,demo,bench]'``. On a GPU all systems train there, sparsify with its Triton
kernel (not yet run on a GPU).

Ours, sparsify and overcomplete see the same rows in the same order with the same k, width, batch
and number of steps, each in a process of its own with all cores, taking turns. Timed is the loop
alone: picking the rows of a batch, and the step. FVU is measured afterwards by one function on
rows that nobody trained on.

All take Adam along the same rise and fall of the learning rate; ours at its default, the peers at
`_PEER_RATE`. Inputs are centred and have unit mean square norm; with unit variance per dimension
sparsify did no better.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.benchmarks._cpu_choosing import WIDTHS, choosing
from tests.benchmarks._device import report, wait
from tests.benchmarks._roofline import gemm_flops, roofline
from vision_sae import devices
from vision_sae.activations.store import ActivationStore
from vision_sae.config import HarvestConfig, TrainConfig
from vision_sae.dictionaries.kinds.topk import TopKLearner
from vision_sae.dictionaries.metrics import explained_variance
from vision_sae.dictionaries.training.loop import train_together
from vision_sae.dictionaries.training.scaling import InputScaling
from vision_sae.dictionaries.training.step import learning_rate
from vision_sae.models.precision import fastest_dtype

SITE = "blocks.10.update"
_HELDOUT_ROWS = 8192
_PEER_RATE = 5e-4

Encoder = Callable[[Tensor], Tensor]
"""Rows (N, D) -> reconstructions (N, D)."""


def patches(directory: Path, images: int) -> tuple[ActivationStore, Path]:
    """Harvest ``images`` pictures; also write their patches as one float16 tensor."""
    from vision_sae.activations.harvest import harvest
    from vision_sae.demo import CORPUS
    from vision_sae.models.loading import load_model
    from vision_sae.pictures.folder import image_folder

    config = HarvestConfig(sites=(SITE,), limit=images)
    place = directory / "store"
    store = harvest(
        load_model(config.model), image_folder(CORPUS / "train"), place, config, progress=False
    )
    rows = torch.cat([array.flatten(0, 1) for array in store.arrays(SITE)])
    path = directory / "rows.pt"
    torch.save(rows, path)
    return store, path


def load(path: Path) -> tuple[Tensor, Tensor]:
    """(rows to train on, rows to measure on): shuffled, centred, unit mean square norm."""
    rows = torch.load(path, weights_only=True).float()
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    rows -= rows.mean(0)
    rows /= rows.square().sum(1).mean().sqrt()
    return rows[_HELDOUT_ROWS:], rows[:_HELDOUT_ROWS]


def batches(rows: Tensor, config: TrainConfig) -> Callable[[int], Tensor]:
    """step -> its rows (batch, D), on the device of ``rows``; the same for everybody."""
    count = -(-config.steps * config.batch_size // len(rows))
    generator = torch.Generator().manual_seed(1)
    order = torch.cat([torch.randperm(len(rows), generator=generator) for _ in range(count)])
    order = order.to(rows.device)
    size = config.batch_size
    return lambda step: rows[order[step * size : (step + 1) * size]]


def ours(
    dim: int, config: TrainConfig, device: str
) -> tuple[Callable[[Tensor, float], Any], Encoder]:
    """(step, reconstruct) of our learner."""
    learner = TopKLearner(dim, config, device=device)

    def reconstruct(rows: Tensor) -> Tensor:
        sae = learner.dictionary(InputScaling(torch.zeros(dim), 1.0, 0.0))
        return sae.decode(sae.encode(rows.cpu())).to(device)

    return learner.step, reconstruct


def sparsify(
    dim: int, config: TrainConfig, device: str
) -> tuple[Callable[[Tensor, float], Any], Encoder]:
    """(step, reconstruct) of sparsify's SparseCoder, stepped as its own Trainer does."""
    if device == "cpu":  # its kernel needs a GPU driver to import
        sys.modules["triton"] = None  # type: ignore[assignment]
    from sparsify import SparseCoder, SparseCoderConfig

    torch.manual_seed(config.seed)
    settings = SparseCoderConfig(expansion_factor=config.expansion, k=config.k)
    sae = SparseCoder(dim, settings).to(device)
    optimizer = torch.optim.Adam(sae.parameters(), lr=_PEER_RATE)

    def step(rows: Tensor, rate: float) -> None:
        sae.set_decoder_norm_to_unit_norm()
        sae(rows).fvu.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()

    return step, lambda rows: sae(rows).sae_out


def overcomplete(
    dim: int, config: TrainConfig, device: str
) -> tuple[Callable[[Tensor, float], Any], Encoder]:
    """(step, reconstruct) of overcomplete's TopKSAE, stepped as its own train_sae does."""
    import matplotlib.pyplot as plt

    plt.cm.get_cmap = plt.get_cmap  # type: ignore[attr-defined]  # gone from matplotlib 3.9
    from overcomplete.sae import TopKSAE
    from overcomplete.sae.trackers import DeadCodeTracker

    torch.manual_seed(config.seed)
    width = dim * config.expansion
    sae = TopKSAE(dim, nb_concepts=width, top_k=config.k, device=device)
    optimizer = torch.optim.Adam(sae.parameters(), lr=_PEER_RATE)
    tracker = DeadCodeTracker(width, device)
    sae.train()

    def step(rows: Tensor, rate: float) -> None:
        optimizer.zero_grad()
        _, codes, x_hat = sae(rows)
        loss = (rows - x_hat).square().mean()
        tracker.update(codes)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()

    def reconstruct(rows: Tensor) -> Tensor:
        sae.eval()
        return sae(rows)[2]

    return step, reconstruct


SYSTEMS = {"ours": ours, "sparsify": sparsify, "overcomplete": overcomplete}


def measure(
    system: str, path: Path, config: TrainConfig, rate: float, device: str
) -> dict[str, Any]:
    """Train one system, in this process. On a GPU all rows lie in its memory."""
    rows, heldout = (t.to(device) for t in load(path))
    step, reconstruct = SYSTEMS[system](rows.shape[1], config, device)
    batch, scheduled = batches(rows, config), config.model_copy(update={"learning_rate": rate})
    warm = SYSTEMS[system](rows.shape[1], config, device)[0]
    for number in range(2):  # compiles, and touches memory for the first time
        warm(batch(number), 0.0)
    del warm
    wait(device)
    begin = time.perf_counter()
    for number in range(config.steps):
        last = step(batch(number), learning_rate(scheduled, number))
    wait(device)
    seconds = time.perf_counter() - begin
    with torch.no_grad():
        x_hat = torch.cat([reconstruct(part) for part in heldout.split(1024)])
    result = {
        "samples_per_s": round(config.steps * config.batch_size / seconds, 1),
        "fvu": round(1 - explained_variance(heldout, x_hat, heldout.mean(0)), 4),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    if system == "ours":
        result |= {"l0": round(float(last.l0), 2), "dead": round(float(last.dead), 4)}
    return result


def median_seconds(step: Callable[[Tensor], Any], dim: int, device: str) -> float:
    """Median seconds of six steps on 4,096 random rows, after a first one."""
    seconds, rows = [], torch.randn(4096, dim, device=device) / dim**0.5
    for _ in range(7):
        begin = time.perf_counter()
        step(rows)
        wait(device)
        seconds.append(time.perf_counter() - begin)
    return sorted(seconds[1:])[3]


def step_seconds(dim: int, width: int, k: int, device: str) -> float:
    """Seconds of our step."""
    config = TrainConfig(expansion=width // dim, k=k, steps=1000)
    learner = TopKLearner(dim, config, device=device)
    return median_seconds(lambda rows: learner.step(rows, 1e-3), dim, device)


def dense_step_seconds(dim: int, width: int, k: int, device: str) -> float:
    """Seconds of a TopK step without AuxK whose codes are a dense matrix, in the fastest precision:
    what a learner for small dictionaries could gain."""
    low = fastest_dtype(device)
    w_dec = torch.nn.functional.normalize(torch.randn(width, dim, device=device), dim=1)
    w_enc, w_dec, b_enc = (
        torch.nn.Parameter(p) for p in (w_dec.clone(), w_dec, torch.zeros(width, device=device))
    )
    adam = torch.optim.Adam([w_enc, w_dec, b_enc], lr=1e-3, fused=True)

    @torch.no_grad()
    def step(rows: Tensor) -> None:
        x = rows.to(low)
        pre = x @ w_enc.to(low).T + b_enc.to(low)
        codes = (pre * (pre >= pre.topk(k, dim=1).values[:, -1:])).relu_()
        error = (codes @ w_dec.to(low)).float() - rows
        gradient = (error * (2 / len(rows))).to(low)
        by_code = (gradient @ w_dec.to(low).T) * (codes > 0)
        w_enc.grad, b_enc.grad = (by_code.T @ x).float(), by_code.sum(0).float()
        w_dec.grad = (codes.T @ gradient).float()
        w_dec.grad -= (w_dec.grad * w_dec).sum(1, keepdim=True) * w_dec
        adam.step()
        w_dec.div_(w_dec.norm(dim=1, keepdim=True))

    return median_seconds(step, dim, device)


def small(device: str) -> list[dict[str, float]]:
    """Our step beside a dense one where the dictionary is small."""
    shapes = [(384, 8), (384, 32), (768, 32), (1536, 32), (1536, 128)]
    return [
        {
            "width": width,
            "k": k,
            "step_ms": round(1e3 * step_seconds(384, width, k, device), 1),
            "dense_step_ms": round(1e3 * dense_step_seconds(384, width, k, device), 1),
        }
        for width, k in shapes
    ]


def scaling(device: str) -> list[dict[str, float]]:
    """Our step time with F, k and D, one at a time."""
    shapes = [(384, w, 32) for w in (1536, 6144, 24576)]
    shapes += [(384, 6144, k) for k in (8, 128)]
    shapes += [(d, 6144, 32) for d in (768, 1536)]
    return [
        {"dim": d, "width": w, "k": k, "step_ms": round(1e3 * step_seconds(d, w, k, device), 1)}
        for d, w, k in shapes
    ]


def roofline_share(dim: int, width: int, k: int, device: str) -> dict[str, float]:
    """The least time of a step on 4,096 rows, as the limits of this device allow, over its time."""
    least = roofline(device).step_seconds(dim, width)
    seconds = step_seconds(dim, width, k, device)
    return {
        "dim": dim,
        "width": width,
        "k": k,
        "step_ms": round(1e3 * seconds, 2),
        "dense_step_ms": round(1e3 * dense_step_seconds(dim, width, k, device), 2),
        "roofline_share": round(least / seconds, 3),
    }


def streaming(store: ActivationStore, device: str) -> dict[str, float]:
    """What reading costs the trainer, and what four dictionaries on one pass cost."""
    config = TrainConfig(steps=100, site=SITE)
    configs = [config.model_copy(update={"k": k}) for k in (8, 16, 32, 64)]
    warm = config.model_copy(update={"steps": 2})
    train_together(store, [warm], progress=False, device=device)
    begin = time.perf_counter()
    alone = [train_together(store, [c], progress=False, device=device) for c in configs]
    apart = time.perf_counter() - begin
    begin = time.perf_counter()
    train_together(store, configs, progress=False, device=device)
    together = time.perf_counter() - begin
    return {
        "samples_per_s": round(alone[2].samples_per_second, 1),
        "loader_idle_share": round(alone[2].idle_share, 4),
        "sweep_of_4_over_4_runs": round(together / apart, 3),
    }


def _in_a_process(arguments: list[str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.benchmarks.sae_training", *arguments]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return result


def compare(path: Path, width: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """All systems at one width, taking turns; the median turn of each."""
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in SYSTEMS}
    for _ in range(arguments.turns):
        for name in SYSTEMS:
            options = ["--rows", str(path), "--system", name, "--width", str(width)]
            options += ["--steps", str(arguments.steps)]
            turns[name].append(_in_a_process(options))
    result: dict[str, Any] = {
        name: sorted(runs, key=lambda r: float(r["samples_per_s"]))[len(runs) // 2]
        for name, runs in turns.items()
    }
    fastest = max(("sparsify", "overcomplete"), key=lambda n: float(result[n]["samples_per_s"]))
    ratio = result["ours"]["samples_per_s"] / result[fastest]["samples_per_s"]
    return result | {"fastest_peer": fastest, "ratio_to_fastest_peer": round(ratio, 2)}


def measured(arguments: argparse.Namespace) -> dict[str, Any]:
    """The figures of everything, or with ``--system`` those of one system, in this process."""
    device = devices.chosen()
    if arguments.system:
        config = TrainConfig(expansion=arguments.width // 384, k=32, steps=arguments.steps)
        usual = config.learning_rate if arguments.system == "ours" else _PEER_RATE
        rate = arguments.rate or usual
        return measure(arguments.system, arguments.rows, config, rate, device)
    with tempfile.TemporaryDirectory() as directory:
        store, path = patches(Path(directory), arguments.images)
        widths = {str(w): compare(path, w, arguments) for w in WIDTHS}
        rows = load(path)[0][:4096]
        streamed = streaming(store, device)
    peak = gemm_flops(device)
    for width, result in widths.items():
        flops = 2 * 384 * int(width) * result["ours"]["samples_per_s"]
        result["gemm_share"] = round(flops / peak, 3)
    shapes = [] if device == "cpu" else [(1024, 16384, 32), (1024, 65536, 64)]
    return {
        "threads": torch.get_num_threads(),
        "dtype": str(fastest_dtype(device)),
        "gemm_gflops": round(peak / 1e9, 1),
        "gemm_share": {w: r["gemm_share"] for w, r in widths.items()},
        "widths": widths,
        "choose": {str(w): choosing(rows, w) for w in WIDTHS} if device == "cpu" else None,
        "streaming": streamed,
        "scaling": scaling(device),
        "small": small(device),
        "roofline": [roofline_share(*shape, device) for shape in shapes],
    }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=785)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--system", choices=SYSTEMS)
    parser.add_argument("--width", type=int, default=6144)
    parser.add_argument("--rate", type=float)
    report(parser, measured)


if __name__ == "__main__":
    main()

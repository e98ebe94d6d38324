"""Which dictionary for which purpose: sweeps on the demo's ViT, and their picture.

``python -m tests.benchmarks.sae_guide --out DIR`` prints JSON and writes ``guide.png``. It made
the figures of ``vision_sae/dictionaries/GUIDE.md``. It needs the extra ``bench``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks._device import report
from vision_sae import devices
from vision_sae.activations.harvest import harvest
from vision_sae.activations.store import ActivationStore
from vision_sae.config import HarvestConfig, TrainConfig
from vision_sae.demo import CORPUS
from vision_sae.demo.run import SITE
from vision_sae.dictionaries.matching import cosines, nearest
from vision_sae.dictionaries.metrics import evaluate
from vision_sae.dictionaries.protocol import Dictionary
from vision_sae.dictionaries.resident import resident
from vision_sae.dictionaries.training.loop import train_together
from vision_sae.models.loading import load_model
from vision_sae.pictures.folder import image_folder

_BASE = TrainConfig(expansion=8, steps=200)
_LABELS = {
    "topk": "TopK",
    "batch_topk": "BatchTopK",
    "matryoshka": "Matryoshka",
    "relu": "ReLU + L1",
    "jumprelu": "JumpReLU",
    "gated": "Gated",
}


def stores(directory: Path) -> tuple[ActivationStore, ActivationStore]:
    """(training pictures, held-out pictures)"""
    model, config = load_model("demo:dinov2-s"), HarvestConfig(sites=(SITE,))
    return (
        harvest(model, image_folder(CORPUS / "train"), directory / "train", config),
        harvest(model, image_folder(CORPUS / "heldout"), directory / "heldout", config),
    )


def configurations() -> dict[str, list[TrainConfig]]:
    """{sweep: configurations}; every one of a sweep is trained on the same pass."""

    def each(**changes: Iterable[Any]) -> list[TrainConfig]:
        ((name, values),) = changes.items()
        return [_BASE.model_copy(update={name: value}) for value in values]

    def of(name: str, configs: list[TrainConfig]) -> list[TrainConfig]:
        return [config.model_copy(update={"architecture": name}) for config in configs]

    curves = {name: of(name, each(k=(8, 16, 32, 64))) for name in _LABELS}
    seeds = {f"{name} seed": of(name, each(seed=(1, 2))) for name in _LABELS}
    return {**curves, **seeds, "width": each(expansion=(2, 4, 16, 32))}


def measured(
    dictionary: Dictionary, config: TrainConfig, heldout: ActivationStore
) -> dict[str, Any]:
    """What the guide says of one dictionary."""
    there = resident(dictionary, torch.device(devices.chosen()))
    metrics = evaluate(there, heldout.batches(SITE, 4096))
    return {
        "architecture": config.architecture,
        "k": config.k,
        "width": dictionary.width,
        "seed": config.seed,
        "l0": round(metrics.l0, 2),
        "explained_variance": round(metrics.explained_variance, 4),
        "frac_alive": round(metrics.frac_alive, 4),
        "freq_over_10_percent": round(metrics.freq_over_10_percent, 5),
    }


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """EV against L0, a line an architecture; crosses are two other seeds at k = 32."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), dpi=120)
    for name, label in _LABELS.items():
        curve, others = (
            sorted((r["l0"], r["explained_variance"]) for r in rows if r["sweep"] == sweep)
            for sweep in (name, f"{name} seed")
        )
        (line,) = axes.plot(*zip(*curve, strict=True), marker="o", markersize=4, label=label)
        axes.plot(*zip(*others, strict=True), "x", color=line.get_color())
    axes.set(xscale="log", xlabel="L0 on held-out pictures", ylabel="explained variance")
    axes.set_title(f"demo:dinov2-s, {SITE}, F = {_BASE.expansion * 384}", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run every sweep."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    of_seeds: dict[str, list[Dictionary]] = {name: [] for name in _LABELS}
    with tempfile.TemporaryDirectory() as directory:
        if arguments.stores:
            train, heldout = (ActivationStore(arguments.stores / n) for n in ("train", "heldout"))
        else:
            train, heldout = stores(Path(directory))
        for sweep, configs in configurations().items():
            sited = [config.model_copy(update={"site": SITE}) for config in configs]
            made = train_together(train, sited, device=devices.chosen()).dictionaries
            rows += [
                {"sweep": sweep} | measured(d, c, heldout) for d, c in zip(made, sited, strict=True)
            ]
            for dictionary, config in zip(made, sited, strict=True):
                if config.k == _BASE.k and config.expansion == _BASE.expansion:
                    of_seeds[config.architecture].append(dictionary)
            print(sweep, "done", file=sys.stderr, flush=True)
    draw(rows, arguments.out / "guide.png")
    agreement = {
        name: [
            round(nearest(cosines(a.decoder, b.decoder)).mean, 3) for a, b in combinations(made, 2)
        ]
        for name, made in of_seeds.items()
    }
    return {"rows": rows, "agreement_across_seeds": agreement}


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("runs/guide"))
    parser.add_argument("--stores", type=Path, help="directory with train and heldout")
    report(parser, measure)


if __name__ == "__main__":
    main()

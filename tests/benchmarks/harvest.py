"""Harvest against the bare forward pass on the same pictures.

``python -m tests.benchmarks.harvest`` prints JSON.

Both run the demo's ViT to its embedding in the same batches. The bare pass has its pictures
decoded and preprocessed beforehand; harvest decodes, captures a site, converts, hashes and writes.
The two take turns, each harvest between two bare passes whose mean it is compared with, so that a
machine that grows slower or faster favours neither; the ratio is the median over the turns.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks._device import report, wait
from vision_sae.activations.harvest import choose, harvest
from vision_sae.config import HarvestConfig
from vision_sae.demo import CORPUS
from vision_sae.models.loading import load_model
from vision_sae.models.protocol import Model
from vision_sae.pictures.folder import Picture, image_folder


def bare_seconds(model: Model, pictures: list[Picture], batch_size: int) -> float:
    """Seconds of the forward passes alone, of pictures that are on the model's device."""
    pixels = torch.stack([model.preprocess(picture.load()) for picture in pictures])
    pixels = pixels.to(model.device)
    wait(model.device)
    start = time.perf_counter()
    with torch.inference_mode():
        for batch in pixels.split(batch_size):
            model.forward(batch)
    wait(model.device)
    return time.perf_counter() - start


def harvest_seconds(model: Model, pictures: list[Picture], config: HarvestConfig) -> float:
    """Seconds of a whole harvest into a new store."""
    with tempfile.TemporaryDirectory() as directory:
        start = time.perf_counter()
        harvest(model, pictures, Path(directory) / "store", config, progress=False)
        return time.perf_counter() - start


def compare(
    model: Model, pictures: list[Picture], config: HarvestConfig, turns: int
) -> dict[str, Any]:
    """The figures of so many harvests, each between two bare passes."""
    bare_seconds(model, pictures[: config.batch_size], config.batch_size)  # warm up
    bare, whole = [bare_seconds(model, pictures, config.batch_size)], []
    for _ in range(turns):
        whole.append(harvest_seconds(model, pictures, config))
        bare.append(bare_seconds(model, pictures, config.batch_size))
    ratios = [
        (before + after) / 2 / between
        for (before, after), between in zip(pairwise(bare), whole, strict=True)
    ]
    return {
        "images": len(pictures),
        "dtype": str(model.dtype),
        "threads": torch.get_num_threads(),
        "forward_images_per_second": round(len(pictures) / statistics.median(bare), 2),
        "harvest_images_per_second": round(len(pictures) / statistics.median(whole), 2),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
    }


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """The figures of the demo's ViT on its pictures."""
    config = HarvestConfig(shard_images=64)
    pictures = choose(image_folder(CORPUS / "train"), arguments.images)
    return compare(load_model(config.model), pictures, config, arguments.turns)


def main() -> None:
    """Run the turns and print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--turns", type=int, default=3)
    report(parser, measure)


if __name__ == "__main__":
    main()

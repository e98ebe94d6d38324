"""Work that a test kills.

A process of its own sends itself SIGKILL just before the n-th call of one function of the stage,
so that the place of death is the same every time.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.worlds.tiny import tiny_model
from vision_sae.activations import shards as shards_module
from vision_sae.activations import store_writer as store_writer_module
from vision_sae.activations.harvest import harvest as harvest_pictures
from vision_sae.activations.store import ActivationStore
from vision_sae.bundles import build as build_module
from vision_sae.bundles import patch_index_builder
from vision_sae.config import BuildConfig, DescribeConfig, HarvestConfig, TrainConfig
from vision_sae.descriptions import describe as describe_module
from vision_sae.dictionaries.pipeline import train_dictionary
from vision_sae.dictionaries.training.sparse import SparseLearner
from vision_sae.pictures.folder import image_folder

HARVEST = HarvestConfig(sites=("blocks.1.update",), batch_size=2, shard_images=3, thumbnail=16)
TRAIN = TrainConfig(expansion=2, k=4, steps=24, batch_size=64, checkpoint_steps=5, dead_after=200)
DESCRIBE = DescribeConfig(describer="caption-pmi", metrics=())
BUILD = BuildConfig(exemplars=3, quantile_exemplars=2)


def harvest(root: Path) -> None:
    pictures = image_folder(root / "pictures")
    harvest_pictures(tiny_model(), pictures, root / "store", HARVEST, progress=False)


def train(root: Path) -> None:
    train_dictionary(ActivationStore(root / "store"), root / "d", TRAIN, {}, progress=False)


def build(root: Path) -> None:
    store = ActivationStore(root / "store")
    build_module.build(store, root / "d", root / "bundle", BUILD, progress=False, overwrite=True)


def describe(root: Path) -> None:
    describe_module.describe_bundle(root / "bundle", DESCRIBE, progress=False)


STAGES: dict[str, tuple[Callable[[Path], None], Any, str]] = {
    "harvest-write": (harvest, store_writer_module, "write_shard"),
    "harvest-fsync": (harvest, shards_module, "fsync"),
    "harvest-rename": (harvest, os, "rename"),
    "train-step": (train, SparseLearner, "step"),
    "train-replace": (train, os, "replace"),
    "build-save": (build, build_module.codes_module, "save"),
    "build-index": (build, patch_index_builder, "write_shard"),
    "build-replace": (build, os, "replace"),
    "build-rename": (build, os, "rename"),
    "describe-write": (describe, describe_module, "descriptions_file"),
    "describe-rename": (describe, os, "rename"),
}


def die_before_call(owner: Any, name: str, number: int) -> None:
    original, calls = getattr(owner, name), 0

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **options)

    setattr(owner, name, counted)


def die(stage: str, root: Path, kill_at: int) -> None:
    torch.set_num_threads(1)
    work, owner, function = STAGES[stage]
    die_before_call(owner, function, kill_at)
    work(root)


def start(stage: str, root: Path, kill_at: int) -> int | None:
    """Run a stage in a process of its own; returns its exit status (-9 when it was killed)."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # torch is imported once, not in every process
    process = context.Process(target=die, args=(stage, root, kill_at))
    process.start()
    process.join()
    return process.exitcode

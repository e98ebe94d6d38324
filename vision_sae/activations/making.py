"""Making an ActivationStore shard by shard: whole shards survive an interruption, and the next run
makes only the rest."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from tqdm import tqdm

import vision_sae
from vision_sae.activations import store as layout
from vision_sae.activations.shards import Shard, write_shard
from vision_sae.activations.store import ActivationStore, read_jsonl
from vision_sae.config import HarvestConfig
from vision_sae.errors import InvalidInputError
from vision_sae.files import MANIFEST, open_staging, publish, read_json, sha256_json, write_json
from vision_sae.models.protocol import ContrastiveModel, Model

Item = TypeVar("Item")
Report = Callable[[int], object]
"""Told how many more items are done."""


@dataclass(frozen=True)
class Making(Generic[Item]):
    """What a store is made of, and how."""

    plan: dict[str, Any]
    """What must be the same for two runs to make the same bytes."""
    items: Sequence[Item]
    per_shard: int
    unit: str
    """What an item is called."""
    collect: Callable[[Sequence[Sequence[Item]], Report], Iterator[Shard]]
    """The shards of groups of items, in order; called once a run."""


def plan_of(model: Model, config: HarvestConfig, data_sha256: str) -> dict[str, Any]:
    """The plan of a harvest of ``config.sites``; refuses unknown sites before any work is done."""
    with model.capture(config.sites):
        pass
    sites = [model.sites[name] for name in config.sites]
    aligned = {}
    if config.text_aligned:
        if not isinstance(model, ContrastiveModel):
            raise InvalidInputError(
                f"{model.name} has no texts; harvest a contrastive model, or without this",
                field="text_aligned",
            )
        aligned = {"text_aligned": {"dim": model.embedding_dim, "weights": True}}
    return {
        "format": layout.FORMAT,
        "version": layout.VERSION,
        "code_version": vision_sae.__version__,
        "model": model.identity(),
        "compute_dtype": str(model.dtype).removeprefix("torch."),
        "grid": model.grid.to_json(),
        "preprocessing": model.preprocessing.to_json(),
        "sites": {site.name: {"kind": site.kind, "dim": site.dim} for site in sites},
        "dtype": config.dtype,
        "batch_size": config.batch_size,
        "shard_images": config.shard_images,
        "thumbnail": config.thumbnail,
        "data_sha256": data_sha256,
        **aligned,
    }


def make_store(making: Making[Item], directory: Path, *, progress: bool) -> ActivationStore:
    """Make the shards that are missing and publish the store at ``directory``.

    A store that already holds exactly this is returned as it is.
    """
    plan, items = making.plan, making.items
    if (directory / MANIFEST).is_file():
        found = read_json(directory / MANIFEST)
        if all(found.get(key) == value for key, value in json.loads(json.dumps(plan)).items()):
            return ActivationStore(directory)
    staging = open_staging(directory, resume=_same_plan(directory, plan))
    write_json(_plan_path(directory), sha256_json(plan))
    shards = staging / layout.SHARDS
    shards.mkdir(exist_ok=True)

    groups = {
        f"{index:05d}": items[start : start + making.per_shard]
        for index, start in enumerate(range(0, len(items), making.per_shard))
    }
    todo = {name: group for name, group in groups.items() if not (shards / name).is_dir()}
    done = len(items) - sum(map(len, todo.values()))
    with (
        tqdm(
            total=len(items), initial=done, desc="harvest", unit=making.unit, disable=not progress
        ) as bar,
        ThreadPoolExecutor(1) as writer,
    ):
        written: Future[None] | None = None
        collected = making.collect(list(todo.values()), bar.update)
        for name, shard in zip(todo, collected, strict=True):
            if written:
                written.result()  # one shard at most waits in memory, and errors surface here
            written = writer.submit(write_shard, shards, name, shard)
        if written:
            written.result()
    _seal(staging, directory, plan, list(groups))
    _plan_path(directory).unlink()
    return ActivationStore(directory)


def _plan_path(directory: Path) -> Path:
    """Where an unfinished harvest notes what it is making."""
    return directory.with_name(f".{directory.name}.plan.json")


def _same_plan(directory: Path, plan: dict[str, Any]) -> bool:
    """Whether an interrupted run with this very plan left shards to go on from."""
    path = _plan_path(directory)
    return path.is_file() and read_json(path) == sha256_json(plan)


def _seal(staging: Path, directory: Path, plan: dict[str, Any], shard_names: list[str]) -> None:
    """Count what was stored, write the manifest and publish."""
    shards: list[dict[str, Any]] = [
        {"name": name, "images": len(read_jsonl(staging / layout.SHARDS / name / layout.IMAGES))}
        for name in shard_names
    ]
    skipped = [
        row
        for name in shard_names
        for row in read_jsonl(staging / layout.SHARDS / name / layout.SKIPPED)
    ]
    images = sum(shard["images"] for shard in shards)
    if images == 0:
        raise InvalidInputError(
            f"none of the {len(skipped)} pictures could be read; the first, {skipped[0]['id']}: "
            f"{skipped[0]['error']}",
            field="images",
        )
    kept = [shard for shard in shards if shard["images"]]
    dim = np.load(
        staging / layout.SHARDS / str(kept[0]["name"]) / layout.EMBEDDING, mmap_mode="r"
    ).shape[1]
    publish(
        directory,
        plan
        | {
            "shards": kept,
            "images": images,
            "skipped": len(skipped),
            "embedding_dim": int(dim),
        },
    )

"""Making an ActivationStore shard by shard: whole shards survive an interruption, and the next run
makes only the rest."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from tqdm import tqdm

import vision_sae
from vision_sae.activations import store as layout
from vision_sae.activations.shards import Shard, is_whole, write_shard
from vision_sae.activations.store import ActivationStore, read_jsonl
from vision_sae.arrays import read_array
from vision_sae.config import HarvestConfig
from vision_sae.errors import InvalidInputError
from vision_sae.files import open_staging, publish, sha256_json
from vision_sae.models.protocol import ContrastiveModel, Model
from vision_sae.places import check_output, check_replaceable
from vision_sae.storage import storing

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


def make_store(
    making: Making[Item], directory: Path, *, progress: bool, overwrite: bool = False
) -> ActivationStore:
    """Make the shards that are missing and publish the store at ``directory``.

    A store that already holds exactly this is returned as it is; another one is replaced only with
    ``overwrite``, and anything else is an `AlreadyExistsError`.
    """
    plan = making.plan
    found = check_output(directory, layout.FORMAT, field="store")
    if found and all(found.get(k) == v for k, v in json.loads(json.dumps(plan)).items()):
        return ActivationStore(directory)
    check_replaceable(directory, found, overwrite=overwrite, field="store")
    with storing(directory):
        staging = open_staging(directory, plan=sha256_json(plan))
        names = _make_shards(making, staging / layout.SHARDS, progress=progress)
        _seal(staging, directory, plan, names)
    return ActivationStore(directory)


def _make_shards(making: Making[Item], shards: Path, *, progress: bool) -> list[str]:
    """Make the shards that are missing or damaged; gives the names of all."""
    items = making.items
    shards.mkdir(exist_ok=True)
    groups = {
        f"{index:05d}": items[start : start + making.per_shard]
        for index, start in enumerate(range(0, len(items), making.per_shard))
    }
    todo = {name: group for name, group in groups.items() if not is_whole(shards / name)}
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
    return list(groups)


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
    dim = read_array(staging / layout.SHARDS / str(kept[0]["name"]) / layout.EMBEDDING).shape[1]
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

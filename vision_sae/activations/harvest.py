"""Images -> Model at its sites -> ActivationStore.

Pictures are decoded batch by batch in a thread pool, the model runs in this thread, another writes
shards. Whole shards survive an interruption, and the next run makes only the rest.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import vision_sae
from vision_sae.activations import store as layout
from vision_sae.activations.decoding import (
    Decoded,
    Outcome,
    Refused,
    batches_ahead,
    decode_batches,
)
from vision_sae.activations.shards import Shard, rounded, write_shard
from vision_sae.activations.store import ActivationStore, read_jsonl
from vision_sae.config import HarvestConfig
from vision_sae.errors import InvalidInputError
from vision_sae.files import (
    MANIFEST,
    open_staging,
    publish,
    read_json,
    sha256_json,
    write_json,
)
from vision_sae.models.protocol import Model
from vision_sae.pictures.folder import Picture, data_sha256
from vision_sae.pictures.views import with_views


def choose(pictures: Sequence[Picture], limit: int | None) -> list[Picture]:
    """All pictures, or ``limit`` of them evenly spaced over the list."""
    if limit is None or limit >= len(pictures):
        return list(pictures)
    return [pictures[i * len(pictures) // limit] for i in range(limit)]


def _plan(model: Model, pictures: Sequence[Picture], config: HarvestConfig) -> dict[str, Any]:
    """What must be the same for two runs to make the same bytes."""
    with model.capture(config.sites):
        pass  # refuses unknown sites before any work is done
    sites = [model.sites[name] for name in config.sites]
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
        "data_sha256": data_sha256(pictures),
    }


def _batches(group: Sequence[Picture], size: int) -> list[Sequence[Picture]]:
    """The batches of one shard: they never cross its end, or a resumed run would differ."""
    return [group[start : start + size] for start in range(0, len(group), size)]


def _compute(
    model: Model, outcomes: Sequence[Outcome], config: HarvestConfig, shard: Shard
) -> None:
    """Run the model over one batch and add it to ``shard``."""
    decoded = [outcome for outcome in outcomes if isinstance(outcome, Decoded)]
    shard.refused += [outcome for outcome in outcomes if isinstance(outcome, Refused)]
    if not decoded:
        return
    images = torch.stack([d.pixels for d in decoded])
    with torch.inference_mode(), model.capture(config.sites) as captured:
        embedding = model.forward(images).embedding
    for site in config.sites:
        patches = captured[site][:, model.grid.special :]
        shard.arrays[f"{site}.npy"].append(rounded(site, patches, config.dtype))
    shard.arrays[layout.EMBEDDING].append(embedding.cpu().numpy())
    shard.records += [d.record for d in decoded]
    shard.thumbnails += [d.thumbnail for d in decoded]


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
            f"none of the {len(skipped)} pictures could be read; the first: {skipped[0]['error']}",
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


def _plan_path(directory: Path) -> Path:
    """Where an unfinished harvest notes what it is making."""
    return directory.with_name(f".{directory.name}.plan.json")


def _same_plan(directory: Path, plan: dict[str, Any]) -> bool:
    """Whether an interrupted run with this very plan left shards to go on from."""
    path = _plan_path(directory)
    return path.is_file() and read_json(path) == sha256_json(plan)


def harvest(
    model: Model,
    pictures: Sequence[Picture],
    directory: Path,
    config: HarvestConfig,
    *,
    progress: bool = True,
) -> ActivationStore:
    """Run ``model`` over ``pictures`` and publish an `ActivationStore` at ``directory``.

    A store that already holds exactly this is returned as it is. Files that are not pictures are
    counted and listed in the store, never fatal; that all of them are is an `InvalidInputError`.
    """
    if not pictures:
        raise InvalidInputError("there are no pictures to harvest", field="images")
    pictures = with_views(choose(pictures, config.limit), config.views)
    plan = _plan(model, pictures, config)
    if (directory / MANIFEST).is_file():
        found = read_json(directory / MANIFEST)
        if all(found.get(key) == value for key, value in json.loads(json.dumps(plan)).items()):
            return ActivationStore(directory)
    staging = open_staging(directory, resume=_same_plan(directory, plan))
    write_json(_plan_path(directory), sha256_json(plan))
    shards = staging / layout.SHARDS
    shards.mkdir(exist_ok=True)

    groups = {
        f"{index:05d}": pictures[start : start + config.shard_images]
        for index, start in enumerate(range(0, len(pictures), config.shard_images))
    }
    todo = {name: group for name, group in groups.items() if not (shards / name).is_dir()}
    done = len(pictures) - sum(map(len, todo.values()))
    batches = {name: _batches(group, config.batch_size) for name, group in todo.items()}
    with (
        tqdm(
            total=len(pictures), initial=done, desc="harvest", unit="img", disable=not progress
        ) as bar,
        ThreadPoolExecutor(torch.get_num_threads()) as decoders,
        ThreadPoolExecutor(1) as writer,
    ):
        ready = decode_batches(
            decoders,
            model,
            chain.from_iterable(batches.values()),
            config.thumbnail,
            ahead=batches_ahead(model),
        )
        written: Future[None] | None = None
        for name, of_shard in batches.items():
            shard = Shard()
            for outcomes in islice(ready, len(of_shard)):
                _compute(model, outcomes, config, shard)
                bar.update(len(outcomes))
            if written:
                written.result()  # one shard at most waits in memory, and errors surface here
            written = writer.submit(write_shard, shards, name, shard)
        if written:
            written.result()
    _seal(staging, directory, plan, list(groups))
    _plan_path(directory).unlink()
    return ActivationStore(directory)

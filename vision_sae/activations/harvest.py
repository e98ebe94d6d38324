"""Images -> Model at its sites -> ActivationStore.

Three things run side by side: decoding in a small thread pool, the model in this thread, writing
in another thread. Whole shards survive an interruption, and the next run makes only the rest.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

import vision_sae
from vision_sae.activations import store as layout
from vision_sae.activations.store import ActivationStore, ImageRecord, read_jsonl
from vision_sae.config import HarvestConfig
from vision_sae.errors import InvalidInputError
from vision_sae.files import (
    MANIFEST,
    fsync,
    open_staging,
    publish,
    read_json,
    sha256_json,
    write_json,
)
from vision_sae.models.protocol import Model
from vision_sae.pictures.folder import Picture

_DECODE_THREADS = 2


class _Decoded(NamedTuple):
    """A picture made ready for the model."""

    record: ImageRecord
    pixels: Tensor
    thumbnail: bytes


@dataclass(frozen=True)
class _Refused:
    """A file that could not be read, and why."""

    id: str
    error: str


def _thumbnail(image: Image.Image, side: int) -> bytes:
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _decode(picture: Picture, model: Model, side: int) -> _Decoded | _Refused:
    try:
        image = picture.load()
        pixels = model.preprocess(image)
    except (InvalidInputError, OSError) as error:
        return _Refused(picture.id, str(error))
    record = ImageRecord(picture.id, image.width, image.height, picture.caption, picture.tags)
    return _Decoded(record, pixels, _thumbnail(image, side))


def choose(pictures: Sequence[Picture], limit: int | None) -> list[Picture]:
    """All pictures, or ``limit`` of them evenly spaced over the list."""
    if limit is None or limit >= len(pictures):
        return list(pictures)
    return [pictures[i * len(pictures) // limit] for i in range(limit)]


def _plan(model: Model, pictures: Sequence[Picture], config: HarvestConfig) -> dict[str, Any]:
    """What must be the same for two runs to make the same bytes."""
    digest = hashlib.sha256()
    for picture in pictures:
        try:
            content = hashlib.sha256(picture.path.read_bytes()).hexdigest()
        except OSError:
            content = "unreadable"
        digest.update(json.dumps([picture.id, picture.caption, picture.tags, content]).encode())
    sites = {name: asdict(model.sites[name]) for name in config.sites if name in model.sites}
    with model.capture(config.sites):
        pass  # refuses unknown sites before any work is done
    return {
        "format": layout.FORMAT,
        "version": layout.VERSION,
        "code_version": vision_sae.__version__,
        "model": model.identity(),
        "compute_dtype": str(model.dtype).removeprefix("torch."),
        "grid": model.grid.to_json(),
        "preprocessing": model.preprocessing.to_json(),
        "sites": {name: {"kind": s["kind"], "dim": s["dim"]} for name, s in sites.items()},
        "dtype": config.dtype,
        "batch_size": config.batch_size,
        "shard_images": config.shard_images,
        "thumbnail": config.thumbnail,
        "data_sha256": digest.hexdigest(),
    }


class _Shard(NamedTuple):
    """Everything of one shard, in memory, ready to be written."""

    name: str
    decoded: list[_Decoded]
    refused: list[_Refused]
    arrays: dict[str, NDArray[Any]]


def _stored(site: str, values: Tensor, dtype: str) -> NDArray[Any]:
    """Round to the store's precision; refuse what does not fit instead of storing infinity."""
    low = values.to(getattr(torch, dtype)).cpu()
    if not torch.isfinite(low).all():
        raise InvalidInputError(
            f"site {site} has values that {dtype} cannot hold (largest "
            f"{values.abs().max():.3g}); harvest with --dtype bfloat16",
            field="dtype",
        )
    return low.view(torch.int16).numpy().view(np.uint16) if dtype == "bfloat16" else low.numpy()


def _compute(
    model: Model,
    decoded: Sequence[_Decoded],
    config: HarvestConfig,
    advance: Callable[[int], object],
) -> dict[str, NDArray[Any]]:
    """Run the model over one shard's pictures: {file name: array}."""
    parts: dict[str, list[NDArray[Any]]] = {site: [] for site in config.sites}
    embeddings: list[NDArray[Any]] = []
    for start in range(0, len(decoded), config.batch_size):
        batch = torch.stack([d.pixels for d in decoded[start : start + config.batch_size]])
        with torch.inference_mode(), model.capture(config.sites) as captured:
            embeddings.append(model.forward(batch).embedding.cpu().numpy())
        for site in config.sites:
            patches = captured[site][:, model.grid.special :]
            parts[site].append(_stored(site, patches, config.dtype))
        advance(len(batch))
    arrays = {f"{site}.npy": np.concatenate(part) for site, part in parts.items() if part}
    return arrays | ({layout.EMBEDDING: np.concatenate(embeddings)} if embeddings else {})


def _empty_arrays(model: Model, config: HarvestConfig) -> dict[str, NDArray[Any]]:
    """The arrays of a shard all of whose pictures were refused."""
    kind = np.uint16 if config.dtype == "bfloat16" else np.float16
    return {
        f"{site}.npy": np.zeros((0, model.grid.patches, model.sites[site].dim), dtype=kind)
        for site in config.sites
    } | {layout.EMBEDDING: np.zeros((0, 0), dtype=np.float32)}


def _write(shards: Path, shard: _Shard) -> None:
    """Write a shard beside its place and rename it: it is there whole, or not at all."""
    temporary = shards / f".{shard.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    for name, array in shard.arrays.items():
        np.save(temporary / name, array, allow_pickle=False)
    thumbnails = [d.thumbnail for d in shard.decoded]
    (temporary / layout.THUMBNAILS).write_bytes(b"".join(thumbnails))
    offsets = np.cumsum([0, *map(len, thumbnails)], dtype=np.int64)
    np.save(temporary / layout.THUMBNAIL_OFFSETS, offsets, allow_pickle=False)
    records = [json.dumps(d.record._asdict(), sort_keys=True) + "\n" for d in shard.decoded]
    (temporary / layout.IMAGES).write_text("".join(records))
    refused = [json.dumps(asdict(r), sort_keys=True) + "\n" for r in shard.refused]
    (temporary / layout.SKIPPED).write_text("".join(refused))
    for path in temporary.iterdir():
        fsync(path)
    os.rename(temporary, shards / shard.name)
    fsync(shards)


def _decode_ahead(
    pool: ThreadPoolExecutor, model: Model, groups: Sequence[Sequence[Picture]], side: int
) -> Iterator[list[_Decoded | _Refused]]:
    """Decode group by group, always one group ahead of the reader: memory stays bounded."""

    def submit(group: Sequence[Picture]) -> list[Future[_Decoded | _Refused]]:
        return [pool.submit(_decode, picture, model, side) for picture in group]

    if not groups:  # an earlier run wrote every shard and died before it could publish
        return
    ahead = submit(groups[0])
    for following in [*groups[1:], []]:
        current, ahead = ahead, submit(following)
        yield [future.result() for future in current]


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
    pictures = choose(pictures, config.limit)
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
    with (
        tqdm(
            total=len(pictures), initial=done, desc="harvest", unit="img", disable=not progress
        ) as bar,
        ThreadPoolExecutor(_DECODE_THREADS) as decoders,
        ThreadPoolExecutor(1) as writer,
    ):
        written: Future[None] | None = None
        ready = _decode_ahead(decoders, model, list(todo.values()), config.thumbnail)
        for name, results in zip(todo, ready, strict=True):
            decoded = [r for r in results if isinstance(r, _Decoded)]
            refused = [r for r in results if isinstance(r, _Refused)]
            arrays = (
                _compute(model, decoded, config, bar.update)
                if decoded
                else _empty_arrays(model, config)
            )
            if written:
                written.result()  # one shard at most waits in memory, and errors surface here
            written = writer.submit(_write, shards, _Shard(name, decoded, refused, arrays))
            bar.update(len(refused))
        if written:
            written.result()
    _seal(staging, directory, plan, list(groups))
    _plan_path(directory).unlink()
    return ActivationStore(directory)

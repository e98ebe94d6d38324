"""Writing an ActivationStore shard by shard: complete shards survive an interruption, and the next
run computes only the missing shards."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self, TypeVar

from vision_sae.activations import store as layout
from vision_sae.activations.passes import Look, Pass, in_groups
from vision_sae.activations.shards import Shard, is_whole, write_shard
from vision_sae.activations.store import ActivationStore, read_jsonl
from vision_sae.arrays import read_array
from vision_sae.config import HarvestConfig
from vision_sae.devices import recorded
from vision_sae.errors import InvalidInputError
from vision_sae.files import open_staging, publish, sha256_json
from vision_sae.models.protocol import ContrastiveModel, Model
from vision_sae.places import check_output, check_replaceable
from vision_sae.storage import storing
from vision_sae.version import CODE_VERSION

Item = TypeVar("Item")


_COMPUTED = "computed"
"""The key of a plan that says where the vectors are computed: it is recorded, and compared with no
other plan, so that another device may continue a store."""


def plan_of(model: Model, config: HarvestConfig, data_sha256: str) -> dict[str, Any]:
    """The inputs that determine a store, as a JSON object, and the device that computes it.

    Raises an error for unknown sites, before any work is done.
    """
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
        "code_version": CODE_VERSION,
        "model": model.identity(),
        _COMPUTED: recorded(model.device, model.dtype),
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


class StoreWriter:
    """The sink of a pass that writes an ActivationStore; a unit of work is a shard.

    Another thread writes a shard while the next shard is computed. The writer is used in a ``with``
    block, which waits for that thread.
    """

    def __init__(
        self, directory: Path, plan: dict[str, Any], items: int, *, overwrite: bool = False
    ) -> None:
        """Start or resume a store of ``items`` items at ``directory``; ``plan`` is from `plan_of`.

        Another store is replaced only with ``overwrite``. Raises `AlreadyExistsError` when
        ``directory`` holds anything else.
        """
        self._directory, self._plan = directory, plan
        self._names = [f"{number:05d}" for number in range(-(-items // plan["shard_images"]))]
        self._shard, self._written = Shard(), _nothing()
        self._thread = ThreadPoolExecutor(1)
        self.missing: frozenset[int] = frozenset()
        """Numbers of the shards that are missing or damaged."""
        existing = check_output(directory, layout.FORMAT, field="store")
        self._is_published = bool(existing) and _agrees(existing or {}, plan)
        if self._is_published:
            return
        check_replaceable(directory, existing, overwrite=overwrite, field="store")
        with storing(directory):
            self._staging = open_staging(directory, plan=sha256_json(_decisive(plan)))
            self._shards = self._staging / layout.SHARDS
            self._shards.mkdir(exist_ok=True)
        self.missing = frozenset(
            number for number, name in enumerate(self._names) if not is_whole(self._shards / name)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._thread.shutdown()

    def add(self, part: Shard) -> None:
        """Append the result of the next batch to the current shard."""
        self._shard.add(part)

    def commit(self, unit: int) -> None:
        """Start to write the shard of this number, unless it is complete already."""
        shard, self._shard = self._shard, Shard()
        if unit in self.missing:
            self._wait()  # so that at most one shard waits in memory
            name = self._names[unit]
            self._written = self._thread.submit(write_shard, self._shards, name, shard)

    def _wait(self) -> None:
        """Wait until the last shard is written; raises the errors of the writing thread."""
        with storing(self._directory):
            self._written.result()

    def publish(self) -> ActivationStore:
        """Publish the store after all shards are written; a published store stays as it is."""
        self._wait()
        if not self._is_published:
            with storing(self._directory):
                publish(self._directory, self._plan | self._counts())
        return ActivationStore(self._directory)

    def _counts(self) -> dict[str, Any]:
        """The manifest's entries about the shards."""
        skipped: list[dict[str, Any]] = []
        shards: list[dict[str, Any]] = []
        for name in self._names:
            shard = self._shards / name
            skipped += read_jsonl(shard / layout.SKIPPED)
            if images := len(read_jsonl(shard / layout.IMAGES)):
                shards.append({"name": name, "images": images})
        if not shards:
            raise InvalidInputError(
                f"none of the {len(skipped)} pictures could be read; the first, "
                f"{skipped[0]['id']}: {skipped[0]['error']}",
                field="images",
            )
        embeddings = read_array(self._shards / str(shards[0]["name"]) / layout.EMBEDDING)
        return {
            "shards": shards,
            "images": sum(shard["images"] for shard in shards),
            "skipped": len(skipped),
            "embedding_dim": int(embeddings.shape[1]),
        }


def _nothing() -> Future[None]:
    """A future that is done: no shard is being written."""
    future: Future[None] = Future()
    future.set_result(None)
    return future


def _decisive(plan: dict[str, Any]) -> dict[str, Any]:
    """The parts of a plan in which two runs of the same work agree."""
    return {key: value for key, value in plan.items() if key != _COMPUTED}


def _agrees(manifest: dict[str, Any], plan: dict[str, Any]) -> bool:
    """Whether a store with this manifest has this plan."""
    as_written = json.loads(json.dumps(_decisive(plan)))
    return all(manifest.get(key) == value for key, value in as_written.items())


def make_store(
    items: Sequence[Item],
    look: Look[Item, Shard],
    plan: dict[str, Any],
    directory: Path,
    *,
    progress: bool,
    overwrite: bool = False,
) -> ActivationStore:
    """Compute the missing shards of ``items`` and publish the store at ``directory``.

    A finished store with the same plan is returned as it is; another store is replaced only with
    ``overwrite``. Raises `AlreadyExistsError` when ``directory`` holds anything else.
    """
    with StoreWriter(directory, plan, len(items), overwrite=overwrite) as writer:
        shards = in_groups(items, plan["shard_images"])
        missing = {number: shards[number] for number in sorted(writer.missing)}
        done = len(items) - sum(map(len, missing.values()))
        Pass(missing, plan["batch_size"], look, "harvest", done=done).run(writer, progress=progress)
        return writer.publish()

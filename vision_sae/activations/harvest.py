"""Pictures -> Model at its sites -> ActivationStore.

On a CPU, each core decodes and computes its own batch. On an accelerator, threads decode ahead of
the model, pictures are copied to it and rows from it while it computes, and the host waits for the
rows of a batch only when the next has begun. Another thread writes shards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from vision_sae.activations import store as layout
from vision_sae.activations.decoding import DecodedBatch
from vision_sae.activations.passes import Look, across, overlapping
from vision_sae.activations.shards import Departure, Rounding, Shard, check_finite
from vision_sae.activations.store import ActivationStore
from vision_sae.activations.store_writer import make_store, plan_of
from vision_sae.config import HarvestConfig
from vision_sae.errors import InvalidInputError
from vision_sae.models.noised import NoisedPictures
from vision_sae.models.protocol import ContrastiveModel, Model
from vision_sae.models.similarity import embed_in_pieces
from vision_sae.pictures.folder import Picture, data_sha256
from vision_sae.pictures.reading import Reading
from vision_sae.pictures.views import with_views
from vision_sae.places import check_output
from vision_sae.transfers import to_device


def choose(pictures: Sequence[Picture], limit: int | None) -> list[Picture]:
    """All pictures, or ``limit`` of them evenly spaced over the list."""
    if limit is None or limit >= len(pictures):
        return list(pictures)
    return [pictures[i * len(pictures) // limit] for i in range(limit)]


def _folders(pictures: Sequence[Picture]) -> set[Path]:
    """The folders that the pictures were read from; ids are paths relative to these folders."""
    files = (p for p in pictures if p.path.as_posix().endswith(p.id))
    return {picture.path.parents[picture.id.count("/")] for picture in files}


def _begin(model: Model, config: HarvestConfig, batch: DecodedBatch) -> Callable[[], Shard]:
    """Begin to run the model over one batch; the result waits for its rows and returns them."""
    part = Shard(batch.records, batch.thumbnails, batch.skipped)
    if not batch.decoded:
        return lambda: part
    # A generator prepares pictures once more, in host memory.
    drawn = isinstance(model, NoisedPictures)
    images = batch.pixels if drawn else to_device(batch.pixels, model.device)
    rows, embedding = rows_of(model, config, images)
    return partial(_arrived, part, list(rows), Departure([*rows.values()], embedding))


def rows_of(
    model: Model, config: HarvestConfig, images: Float[Tensor, "B C H W"]
) -> tuple[dict[str, Rounding], Float[Tensor, "B E"]]:
    """({name: rows of the pictures}, embeddings of the pictures), on the model's device.

    The names are those of the sites; with ``config.text_aligned``, vectors of the patches in the
    text embedding space and their weights come first.
    """
    aligned: dict[str, Tensor] = {}
    with torch.inference_mode(), model.capture(config.sites) as captured:
        if config.text_aligned:
            assert isinstance(model, ContrastiveModel)
            vectors, weights, embedding = embed_in_pieces(model, images)
            aligned = {layout.ALIGNED: vectors, layout.ALIGNED_WEIGHTS: weights}
        else:
            embedding = model.forward(images).embedding
        sites = {site: captured[site][:, model.grid.special :] for site in config.sites}
        rows = {n: Rounding.of(values, config.dtype) for n, values in (aligned | sites).items()}
    return rows, embedding


def _arrived(part: Shard, names: Sequence[str], departure: Departure) -> Shard:
    """``part`` with the rows that have left the model's device."""
    roundings, (embedding,) = departure.arrive()
    pictures = [record.id for record in part.records]
    for name, rounding in zip(names, roundings, strict=True):
        part.arrays[f"{name}.npy"].append(rounding.array(name, pictures))
    check_finite("the embedding", embedding, pictures)
    part.arrays[layout.EMBEDDING].append(embedding.numpy())
    return part


def _look(model: Model, config: HarvestConfig, reading: Reading) -> Look[Picture, Shard]:
    """What runs a model over batches of pictures on its device."""
    return overlapping(
        model,
        partial(_begin, model, config),
        thumbnail=config.thumbnail,
        reading=reading,
        apart=not isinstance(model, NoisedPictures),
    )


def harvest(
    model: Model,
    pictures: Sequence[Picture],
    directory: Path,
    config: HarvestConfig,
    *,
    reading: Reading | None = None,
    progress: bool = True,
    overwrite: bool = False,
    replicas: Sequence[Model] = (),
) -> ActivationStore:
    """Run ``model`` over ``pictures`` and publish an `ActivationStore` at ``directory``.

    ``replicas`` are the same model on further devices, which take batches in turns with it; the
    store has the bytes of one device, if all are alike.

    A finished store with the same inputs is returned as it is, and an interrupted run is resumed.
    Another store is replaced only with ``overwrite``; ``directory`` is checked by
    `vision_sae.places.check_output`. Files that cannot be read are listed in the store and entered
    in ``reading``. Raises `InvalidInputError` when no file can be read, or when ``reading`` is
    strict and a file cannot be read.
    """
    account = Reading() if reading is None else reading
    if not pictures:
        raise InvalidInputError("there are no pictures to harvest", field="images")
    if config.seeds > 1:
        raise InvalidInputError(
            "seeds are of pictures that are generated; a folder of pictures has none", field="seeds"
        )

    check_output(directory, layout.FORMAT, inputs=_folders(pictures), field="store")
    chosen = choose(pictures, config.limit)
    pictures = with_views(chosen, config.views)
    looks = [_look(each, config, account) for each in (model, *replicas)]
    look = across(looks) if replicas else looks[0]
    plan = plan_of(model, config, data_sha256(pictures))
    store = make_store(pictures, look, plan, directory, progress=progress, overwrite=overwrite)
    names = {picture.id for picture in chosen}  # a file is skipped with all of its views
    account.leave_out([skipped for skipped in store.skipped if skipped.id in names])
    account.read += int(store.manifest["images"]) // config.views
    return store

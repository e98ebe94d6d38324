"""Images -> Model at its sites -> ActivationStore.

On a CPU as many batches as there are cores are decoded and computed side by side, one core each; on
an accelerator threads decode ahead of the model. Another thread writes shards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from vision_sae.activations import store as layout
from vision_sae.activations.decoding import (
    Decoded,
    Outcome,
    batches_ahead,
    decode,
    decode_batches,
)
from vision_sae.activations.making import Making, Report, make_store, plan_of
from vision_sae.activations.shards import Shard, check_finite, rounded
from vision_sae.activations.store import ActivationStore
from vision_sae.config import HarvestConfig
from vision_sae.errors import InvalidInputError
from vision_sae.models.noised import NoisedPictures
from vision_sae.models.protocol import ContrastiveModel, Model
from vision_sae.models.similarity import embed_in_pieces
from vision_sae.pictures.folder import Picture, data_sha256
from vision_sae.pictures.reading import Reading, Skipped
from vision_sae.pictures.views import with_views
from vision_sae.places import check_output
from vision_sae.threads import side_by_side


def choose(pictures: Sequence[Picture], limit: int | None) -> list[Picture]:
    """All pictures, or ``limit`` of them evenly spaced over the list."""
    if limit is None or limit >= len(pictures):
        return list(pictures)
    return [pictures[i * len(pictures) // limit] for i in range(limit)]


def _folders(pictures: Sequence[Picture]) -> set[Path]:
    """The folders that the pictures were found in, at whatever depth."""
    found = (p for p in pictures if p.path.as_posix().endswith(p.id))
    return {picture.path.parents[picture.id.count("/")] for picture in found}


def _batches(group: Sequence[Picture], size: int) -> list[Sequence[Picture]]:
    """The batches of one shard: they never cross its end, or a resumed run would differ."""
    return [group[start : start + size] for start in range(0, len(group), size)]


def _compute(model: Model, outcomes: Sequence[Outcome], config: HarvestConfig) -> Shard:
    """Run the model over one batch."""
    part = Shard(skipped=[outcome for outcome in outcomes if isinstance(outcome, Skipped)])
    decoded = [outcome for outcome in outcomes if isinstance(outcome, Decoded)]
    if not decoded:
        return part
    images = torch.stack([d.pixels for d in decoded])
    with torch.inference_mode(), model.capture(config.sites) as captured:
        embedding = _embedding(model, images, config, part)
    pictures = [d.record.id for d in decoded]
    for site in config.sites:
        patches = captured[site][:, model.grid.special :]
        low = rounded(site, patches, config.dtype, pictures=pictures)
        part.arrays[f"{site}.npy"].append(low)
    check_finite("the embedding", embedding, pictures)
    part.arrays[layout.EMBEDDING].append(embedding.cpu().numpy())
    part.records += [d.record for d in decoded]
    part.thumbnails += [d.thumbnail for d in decoded]
    return part


def _embedding(model: Model, images: Tensor, config: HarvestConfig, part: Shard) -> Tensor:
    """The embeddings of pictures (B, E); where asked for, patches in the space of texts are kept
    on the way."""
    if not config.text_aligned:
        return model.forward(images).embedding
    assert isinstance(model, ContrastiveModel)
    vectors, weights, whole = embed_in_pieces(model, images)
    for name, values in ((layout.ALIGNED, vectors), (layout.ALIGNED_WEIGHTS, weights)):
        part.arrays[f"{name}.npy"].append(rounded(name, values, config.dtype))
    return whole


def _parts(
    model: Model, batches: Sequence[Sequence[Picture]], config: HarvestConfig
) -> Iterator[Shard]:
    """What `_compute` makes of each batch, in order."""
    if model.device.type == "cpu" and not isinstance(model, NoisedPictures):

        def work(batch: Sequence[Picture]) -> Shard:
            outcomes = [decode(picture, model, config.thumbnail) for picture in batch]
            return _compute(model, outcomes, config)

        yield from side_by_side(work, batches, torch.get_num_threads())
        return
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        ahead = batches_ahead(model)
        for outcomes in decode_batches(pool, model, batches, config.thumbnail, ahead=ahead):
            yield _compute(model, outcomes, config)


def harvest(
    model: Model,
    pictures: Sequence[Picture],
    directory: Path,
    config: HarvestConfig,
    *,
    reading: Reading | None = None,
    progress: bool = True,
    overwrite: bool = False,
) -> ActivationStore:
    """Run ``model`` over ``pictures`` and publish an `ActivationStore` at ``directory``.

    A store that already holds exactly this is returned as it is, and an interrupted run goes on.
    Another store is replaced only with ``overwrite``; for anything else that is there, and for a
    place among the pictures, see `vision_sae.places.check_output`.
    Files that are not pictures are counted and listed in the store, and told to ``reading``; they
    are fatal, as `InvalidInputError`, when all of them are or when ``reading`` is strict.
    """
    account = Reading() if reading is None else reading
    if not pictures:
        raise InvalidInputError("there are no pictures to harvest", field="images")
    if config.seeds > 1:
        raise InvalidInputError(
            "seeds are of pictures that are generated; a folder of pictures has none", field="seeds"
        )

    def collect(groups: Sequence[Sequence[Picture]], report: Report) -> Iterator[Shard]:
        batches = [_batches(group, config.batch_size) for group in groups]
        parts = _parts(model, [*chain.from_iterable(batches)], config)
        for of_shard in batches:
            shard = Shard()
            for batch, part in zip(of_shard, parts, strict=False):
                account.check(part.skipped)
                shard.add(part)
                report(len(batch))
            yield shard

    check_output(directory, layout.FORMAT, inputs=_folders(pictures), field="store")
    chosen = choose(pictures, config.limit)
    pictures = with_views(chosen, config.views)
    plan = plan_of(model, config, data_sha256(pictures))
    making = Making(plan, pictures, config.shard_images, "img", collect)
    made = make_store(making, directory, progress=progress, overwrite=overwrite)
    names = {picture.id for picture in chosen}  # a file is skipped with all of its views
    account.leave_out([skipped for skipped in made.skipped if skipped.id in names])
    account.read += int(made.manifest["images"]) // config.views
    return made

"""Images -> Model at its sites -> ActivationStore.

Pictures are decoded batch by batch in a thread pool, the model runs in this thread, another writes
shards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path

import torch
from torch import Tensor

from vision_sae.activations import store as layout
from vision_sae.activations.decoding import (
    Decoded,
    Outcome,
    Refused,
    batches_ahead,
    decode_batches,
)
from vision_sae.activations.making import Making, Report, make_store, plan_of
from vision_sae.activations.shards import Shard, rounded
from vision_sae.activations.store import ActivationStore
from vision_sae.config import HarvestConfig
from vision_sae.errors import InvalidInputError
from vision_sae.models.protocol import ContrastiveModel, Model
from vision_sae.pictures.folder import Picture, data_sha256
from vision_sae.pictures.views import with_views


def choose(pictures: Sequence[Picture], limit: int | None) -> list[Picture]:
    """All pictures, or ``limit`` of them evenly spaced over the list."""
    if limit is None or limit >= len(pictures):
        return list(pictures)
    return [pictures[i * len(pictures) // limit] for i in range(limit)]


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
        embedding = _embedding(model, images, config, shard)
    for site in config.sites:
        patches = captured[site][:, model.grid.special :]
        shard.arrays[f"{site}.npy"].append(rounded(site, patches, config.dtype))
    shard.arrays[layout.EMBEDDING].append(embedding.cpu().numpy())
    shard.records += [d.record for d in decoded]
    shard.thumbnails += [d.thumbnail for d in decoded]


def _embedding(model: Model, images: Tensor, config: HarvestConfig, shard: Shard) -> Tensor:
    """The embeddings of pictures (B, E); where asked for, patches in the space of texts are kept
    on the way."""
    if not config.text_aligned:
        return model.forward(images).embedding
    assert isinstance(model, ContrastiveModel)
    patches = model.embed_patches(images)
    vectors = torch.nn.functional.normalize(patches.vectors, dim=-1)
    name = layout.ALIGNED
    shard.arrays[f"{name}.npy"].append(rounded(name, vectors, config.dtype))
    return model.forward(images).embedding if patches.whole is None else patches.whole


def harvest(
    model: Model,
    pictures: Sequence[Picture],
    directory: Path,
    config: HarvestConfig,
    *,
    progress: bool = True,
) -> ActivationStore:
    """Run ``model`` over ``pictures`` and publish an `ActivationStore` at ``directory``.

    A store that already holds exactly this is returned as it is, and an interrupted run goes on.
    Files that are not pictures are counted and listed in the store, never fatal; that all of them
    are is an `InvalidInputError`.
    """
    if not pictures:
        raise InvalidInputError("there are no pictures to harvest", field="images")
    if config.seeds > 1:
        raise InvalidInputError(
            "seeds are of pictures that are generated; a folder of pictures has none", field="seeds"
        )

    def collect(groups: Sequence[Sequence[Picture]], report: Report) -> Iterator[Shard]:
        batches = [_batches(group, config.batch_size) for group in groups]
        with ThreadPoolExecutor(torch.get_num_threads()) as decoders:
            ready = decode_batches(
                decoders,
                model,
                chain.from_iterable(batches),
                config.thumbnail,
                ahead=batches_ahead(model),
            )
            for of_shard in batches:
                shard = Shard()
                for outcomes in islice(ready, len(of_shard)):
                    _compute(model, outcomes, config, shard)
                    report(len(outcomes))
                yield shard

    pictures = with_views(choose(pictures, config.limit), config.views)
    plan = plan_of(model, config, data_sha256(pictures))
    making = Making(plan, pictures, config.shard_images, "img", collect)
    return make_store(making, directory, progress=progress)

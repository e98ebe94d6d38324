"""One pass over pictures for both models of the demo, whose first blocks are the same.

The vision tower of the demo's CLIP is the demo's ViT with other last blocks; see
`vision_sae.models.embedded.clip`. So the pass computes the blocks up to `SHARED` once, and each
store gets the vectors of its own model.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from vision_sae.activations import store as layout
from vision_sae.activations.decoding import DecodedBatch
from vision_sae.activations.passes import Pass, in_groups, look_at_pictures
from vision_sae.activations.shards import Shard, rounded
from vision_sae.activations.store import ActivationStore
from vision_sae.activations.store_writer import StoreWriter, plan_of
from vision_sae.config import HarvestConfig
from vision_sae.models.clip import ClipModel
from vision_sae.models.pooled_vit import SHALLOW
from vision_sae.models.vit import VitModel
from vision_sae.pictures.folder import Picture, data_sha256
from vision_sae.pictures.reading import Reading

SHARED = SHALLOW
"""The last block that both models share."""

Configs = tuple[HarvestConfig, HarvestConfig]
"""Configurations for the ViT and the CLIP, with equal batches, shards and thumbnails."""


class _Writers(NamedTuple):
    """The writers of both stores. A shard that only one store lacks is written to that store
    only."""

    of_vit: StoreWriter
    of_clip: StoreWriter

    def add(self, part: tuple[Shard, Shard]) -> None:
        """Add the next batch to both stores."""
        for writer, shard in zip(self, part, strict=True):
            writer.add(shard)

    def commit(self, unit: int) -> None:
        """Write the shards of this number."""
        for writer in self:
            writer.commit(unit)


def harvest_both(
    vit: VitModel,
    clip: ClipModel,
    pictures: Sequence[Picture],
    directories: tuple[Path, Path],
    configs: Configs,
    *,
    progress: bool = True,
    overwrite: bool = False,
) -> tuple[ActivationStore, ActivationStore]:
    """Make the stores of the ViT and the CLIP at ``directories``, equal to those of `harvest`.

    Finished stores of the same work are returned unchanged, and an interrupted run is resumed.
    Other stores are replaced only with ``overwrite``.
    """
    data, config = data_sha256(pictures), configs[0]
    of_vit, of_clip = (
        StoreWriter(directory, plan_of(model, own, data), len(pictures), overwrite=overwrite)
        for model, own, directory in zip((vit, clip), configs, directories, strict=True)
    )
    look = look_at_pictures(
        vit,
        partial(_see, vit, clip, configs),
        thumbnail=config.thumbnail,
        reading=Reading(),
        apart=vit.device.type == "cpu",
    )
    with of_vit, of_clip:
        shards = in_groups(pictures, config.shard_images)
        missing = {unit: shards[unit] for unit in sorted(of_vit.missing | of_clip.missing)}
        done = len(pictures) - sum(map(len, missing.values()))
        both = Pass(missing, config.batch_size, look, "harvest", done=done)
        both.run(_Writers(of_vit, of_clip), progress=progress)
        return of_vit.publish(), of_clip.publish()


def _see(
    vit: VitModel, clip: ClipModel, configs: Configs, batch: DecodedBatch
) -> tuple[Shard, Shard]:
    """Vectors of both models for a batch, with one pass over the shared blocks."""
    of_vit, of_clip = (Shard(batch.records, batch.thumbnails, batch.skipped) for _ in configs)
    if not batch.decoded:
        return of_vit, of_clip
    behind = f"blocks.{SHARED}.resid"
    trunk = cast(Any, clip.backbone.module).visual.trunk
    with torch.inference_mode():
        with vit.capture([behind, *configs[0].sites]) as by_vit:
            embedding = vit.forward(batch.pixels).embedding
        with clip.capture(configs[1].sites) as by_clip:
            tokens = trunk.from_shallow(by_vit[behind])
        vectors, weights, whole = trunk.patch_pooling.apart(tokens)
    for shard, config, captured in zip((of_vit, of_clip), configs, (by_vit, by_clip), strict=True):
        for site in config.sites:
            _keep(shard, site, captured[site][:, vit.grid.special :], config)
    if configs[1].text_aligned:
        _keep(of_clip, layout.ALIGNED, vectors, configs[1])
        _keep(of_clip, layout.ALIGNED_WEIGHTS, weights, configs[1])
    of_vit.arrays[layout.EMBEDDING].append(embedding.float().cpu().numpy())
    of_clip.arrays[layout.EMBEDDING].append(whole.float().cpu().numpy())
    return of_vit, of_clip


def _keep(shard: Shard, name: str, values: Tensor, config: HarvestConfig) -> None:
    """Add one array of a batch to a shard, in the store's precision."""
    shard.arrays[f"{name}.npy"].append(rounded(name, values, config.dtype))

"""Both models of the demo look at pictures at once: their first blocks are the same.

The demo CLIP's vision tower is the demo's ViT with other last blocks; see
`vision_sae.demo.clip_weights`. So the blocks up to `SHARED` are computed once, and each store gets
what its own model sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path
from queue import SimpleQueue
from typing import Any, cast

import torch

from vision_sae.activations import store as layout
from vision_sae.activations.decoding import Decoded, decode
from vision_sae.activations.making import Making, Report, make_store, plan_of
from vision_sae.activations.shards import Shard, rounded
from vision_sae.activations.store import ActivationStore
from vision_sae.config import HarvestConfig
from vision_sae.models.clip import ClipModel
from vision_sae.models.pooled_vit import SHALLOW
from vision_sae.models.vit import VitModel
from vision_sae.pictures.folder import Picture, data_sha256
from vision_sae.pictures.reading import Skipped
from vision_sae.threads import side_by_side

SHARED = SHALLOW
"""The last block that both models have."""


def harvest_both(
    vit: VitModel,
    clip: ClipModel,
    pictures: Sequence[Picture],
    directories: tuple[Path, Path],
    configs: tuple[HarvestConfig, HarvestConfig],
    *,
    progress: bool = True,
    overwrite: bool = False,
) -> tuple[ActivationStore, ActivationStore]:
    """The stores of the ViT and of the CLIP, as `harvest` would make each, at ``directories``.

    One thread looks, and each store has one that writes it. Stores that are there already are
    returned as they are, and an interrupted run goes on; others are replaced only with
    ``overwrite``.
    """
    for_clip: SimpleQueue[Shard | None] = SimpleQueue()
    size = configs[0].batch_size

    def look(groups: Sequence[Sequence[Picture]], report: Report) -> Iterator[Shard]:
        batches = [
            [group[start : start + size] for start in range(0, len(group), size)]
            for group in groups
        ]
        work = partial(_look, vit, clip, configs)
        looked = side_by_side(work, chain(*batches), torch.get_num_threads())
        for of_shard in batches:
            mine, other = Shard(), Shard()
            for batch, (seen, by_clip) in zip(of_shard, looked, strict=False):
                mine.add(seen)
                other.add(by_clip)
                report(len(batch))
            for_clip.put(other)
            yield mine

    def receive(groups: Sequence[Sequence[Picture]], report: Report) -> Iterator[Shard]:
        for group in groups:
            shard = for_clip.get()
            if shard is None:
                raise _StoppedError
            yield shard
            report(len(group))

    def make(
        model: VitModel,
        config: HarvestConfig,
        directory: Path,
        collect: Callable[[Sequence[Sequence[Picture]], Report], Iterator[Shard]],
        shows: bool,
    ) -> ActivationStore:
        plan = plan_of(model, config, data_sha256(pictures))
        making = Making(plan, pictures, config.shard_images, "img", collect)
        return make_store(making, directory, progress=shows, overwrite=overwrite)

    with ThreadPoolExecutor(1) as beside:
        written = beside.submit(make, clip, configs[1], directories[1], receive, False)
        try:
            first = make(vit, configs[0], directories[0], look, progress)
        except BaseException:
            for_clip.put(None)  # whoever waits for a shard ends
            raise
        return first, written.result()


class _StoppedError(Exception):
    """The thread that looks has ended before its time; what it raised is raised."""


def _look(
    vit: VitModel,
    clip: ClipModel,
    configs: tuple[HarvestConfig, HarvestConfig],
    batch: Sequence[Picture],
) -> tuple[Shard, Shard]:
    """What both models see in a batch, by one pass over the blocks that they share."""
    outcomes = [decode(picture, vit, configs[0].thumbnail) for picture in batch]
    decoded = [outcome for outcome in outcomes if isinstance(outcome, Decoded)]
    shards = tuple(
        Shard(
            records=[d.record for d in decoded],
            thumbnails=[d.thumbnail for d in decoded],
            skipped=[outcome for outcome in outcomes if isinstance(outcome, Skipped)],
        )
        for _ in configs
    )
    if not decoded:
        return shards[0], shards[1]
    images = torch.stack([d.pixels for d in decoded])
    behind = f"blocks.{SHARED}.resid"
    trunk = cast(Any, clip.backbone.module).visual.trunk
    with torch.inference_mode():
        with vit.capture([behind, *configs[0].sites]) as seen:
            embedding = vit.forward(images).embedding
        with clip.capture(configs[1].sites) as by_clip:
            tokens = trunk.from_shallow(seen[behind])
        vectors, weights, whole = trunk.patch_pooling.apart(tokens)
    kept = [
        (configs[0], seen, embedding, {}),
        (configs[1], by_clip, whole, {layout.ALIGNED: vectors, layout.ALIGNED_WEIGHTS: weights}),
    ]
    for shard, (config, captured, pooled, aligned) in zip(shards, kept, strict=True):
        for site in config.sites:
            patches = captured[site][:, vit.grid.special :]
            shard.arrays[f"{site}.npy"].append(rounded(site, patches, config.dtype))
        for name, values in aligned.items() if config.text_aligned else ():
            shard.arrays[f"{name}.npy"].append(rounded(name, values, config.dtype))
        shard.arrays[layout.EMBEDDING].append(pooled.float().cpu().numpy())
    return shards[0], shards[1]

"""Prompts -> Generator at its sites, at every denoising step -> ActivationStore.

A picture has one record a step, ``000012/step-3``, whose source is the picture, whose caption is
its prompt and whose thumbnail is the finished picture. Of a batch with guidance the conditional
half is kept.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from vision_sae.activations import store as layout
from vision_sae.activations.making import Making, Report, make_store, plan_of
from vision_sae.activations.shards import Shard, check_finite, rounded
from vision_sae.activations.store import ActivationStore, ImageRecord
from vision_sae.config import HarvestConfig
from vision_sae.errors import InvalidInputError, NotFoundError
from vision_sae.models.generator import GenerationSettings, Generator
from vision_sae.models.noised import NoisedPictures
from vision_sae.texts import read_lines


class Prompted(NamedTuple):
    """A picture to be made."""

    id: str
    prompt: str
    seed: int


def read_prompts(path: Path) -> list[str]:
    """The prompts of a text file, one a line; empty lines are passed over.

    Raises `NotFoundError` without such a file and `InvalidInputError` when it holds none, or with
    the line that is no text.
    """
    if not path.is_file():
        raise NotFoundError(f"{path} is not a text file of prompts", field="prompts")
    lines = read_lines(path, "prompts")
    prompts = [line.text.strip() for line in lines if line.text.strip()]
    if not prompts:
        raise InvalidInputError(f"{path} holds no prompt; write one a line", field="prompts")
    return prompts


def prompted(prompts: Sequence[str], seeds: int) -> list[Prompted]:
    """``seeds`` pictures of each prompt; no two have the same noise."""
    return [
        Prompted(f"{number:06d}", prompt, number)
        for number, prompt in enumerate(p for p in prompts for _ in range(seeds))
    ]


def _data_sha256(pictures: Sequence[Prompted], generator: Generator) -> str:
    made = [generator.identity()["weights_sha256"], generator.usual_steps, *pictures]
    return hashlib.sha256(json.dumps(made).encode()).hexdigest()


def _jpeg(image: Image.Image, side: int) -> bytes:
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def _compute(
    generator: Generator, batch: Sequence[Prompted], config: HarvestConfig, shard: Shard
) -> None:
    """Generate one batch and add it to ``shard``, picture by picture and step by step."""
    run = generator.start(*(GenerationSettings(p.prompt, seed=p.seed) for p in batch))
    sites = dict.fromkeys([*config.sites, generator.deepest])
    vectors: dict[str, list[Tensor]] = {site: [] for site in sites}
    while run.step < run.steps:
        with generator.capture(list(sites)) as captured:
            run.advance()
        for site, steps in vectors.items():
            steps.append(captured[site][-len(batch) :].cpu())
    pictures = run.pictures()
    names = [f"{item.id}/step-{step}" for item in batch for step in range(run.steps)]
    for site in config.sites:
        every = torch.stack(vectors[site], dim=1).flatten(0, 1)
        low = rounded(site, every, config.dtype, pictures=names)
        shard.arrays[f"{site}.npy"].append(low)
    deepest = torch.stack(vectors[generator.deepest], dim=1).flatten(0, 1)
    check_finite("the embedding", deepest, names)
    shard.arrays[layout.EMBEDDING].append(deepest.float().mean(1).numpy())
    for item, picture in zip(batch, pictures, strict=True):
        shard.records += [
            ImageRecord(
                f"{item.id}/step-{step}", picture.width, picture.height, item.prompt, (), item.id
            )
            for step in range(run.steps)
        ]
        shard.thumbnails += [_jpeg(picture, config.thumbnail)] * run.steps


def harvest_generations(
    generator: Generator,
    prompts: Sequence[str],
    directory: Path,
    config: HarvestConfig,
    *,
    progress: bool = True,
    overwrite: bool = False,
) -> ActivationStore:
    """Generate ``config.seeds`` pictures of each prompt and publish what happened at its sites.

    The sites must share one grid. A store that already holds exactly this is returned as it is,
    and an interrupted run goes on; another store is replaced only with ``overwrite``.
    """
    if config.views > 1:
        raise InvalidInputError(
            "views are crops of pictures that exist; ask for several seeds instead", field="views"
        )
    side = generator.usual_side
    first = config.sites[0]
    model = NoisedPictures(generator)
    if first in generator.sites:
        model = model.on(generator.grid(first, side, side))

    def collect(groups: Sequence[Sequence[Prompted]], report: Report) -> Iterator[Shard]:
        for group in groups:
            shard = Shard()
            for start in range(0, len(group), config.batch_size):
                batch = group[start : start + config.batch_size]
                _compute(generator, batch, config, shard)
                report(len(batch))
            yield shard

    pictures = prompted(prompts[: config.limit], config.seeds)
    plan = plan_of(model, config, _data_sha256(pictures, generator))
    making = Making(plan, pictures, config.shard_images, "img", collect)
    return make_store(making, directory, progress=progress, overwrite=overwrite)

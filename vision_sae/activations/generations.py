"""Prompts -> Generator at its sites, at every denoising step -> ActivationStore.

Each picture has one record a step, named as in ``000012/step-3``: its source is the picture, its
caption the prompt, and its thumbnail the finished picture. With guidance, the store keeps the
conditional half of each batch.
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
from vision_sae.activations.passes import Look, across
from vision_sae.activations.shards import Departure, Rounding, Shard, check_finite
from vision_sae.activations.store import ActivationStore, ImageRecord
from vision_sae.activations.store_writer import make_store, plan_of
from vision_sae.config import HarvestConfig
from vision_sae.errors import InvalidInputError, NotFoundError
from vision_sae.models.generator import GenerationSettings, Generator
from vision_sae.models.noised import NoisedPictures
from vision_sae.texts import read_lines


class Prompted(NamedTuple):
    """A picture to generate."""

    id: str
    prompt: str
    seed: int


def read_prompts(path: Path) -> list[str]:
    """The prompts of a text file, one a line; empty lines are skipped.

    Raises `NotFoundError` when there is no such file, and `InvalidInputError` when the file holds
    no prompt or a line that is not text.
    """
    if not path.is_file():
        raise NotFoundError(f"{path} is not a text file of prompts", field="prompts")
    lines = read_lines(path, "prompts")
    prompts = [line.text.strip() for line in lines if line.text.strip()]
    if not prompts:
        raise InvalidInputError(f"{path} holds no prompt; write one a line", field="prompts")
    return prompts


def prompted(prompts: Sequence[str], seeds: int) -> list[Prompted]:
    """``seeds`` pictures of each prompt, all with different noise."""
    return [
        Prompted(f"{number:06d}", prompt, number)
        for number, prompt in enumerate(p for p in prompts for _ in range(seeds))
    ]


def _data_sha256(pictures: Sequence[Prompted], generator: Generator) -> str:
    inputs = [generator.identity()["weights_sha256"], generator.usual_steps, *pictures]
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()


def _jpeg(image: Image.Image, side: int) -> bytes:
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def _generated(generator: Generator, config: HarvestConfig, batch: Sequence[Prompted]) -> Shard:
    """Generate one batch; the shard is ordered by picture, then by step."""
    shard = Shard()
    run = generator.start(*(GenerationSettings(p.prompt, seed=p.seed) for p in batch))
    sites = dict.fromkeys([*config.sites, generator.deepest])
    vectors: dict[str, list[Tensor]] = {site: [] for site in sites}
    while run.step < run.steps:
        with generator.capture(list(sites)) as captured:
            run.advance()
        for site, steps in vectors.items():
            steps.append(captured[site][-len(batch) :])
    # All steps leave the device at once, when the pictures are finished.
    every = {site: torch.stack(steps, dim=1).flatten(0, 1) for site, steps in vectors.items()}
    roundings = [Rounding.of(every[site], config.dtype) for site in config.sites]
    departure = Departure(roundings, every[generator.deepest])
    pictures = run.pictures()
    names = [f"{item.id}/step-{step}" for item in batch for step in range(run.steps)]
    roundings, (deepest,) = departure.arrive()
    for site, rounding in zip(config.sites, roundings, strict=True):
        shard.arrays[f"{site}.npy"].append(rounding.array(site, names))
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
    return shard


def _look(generator: Generator, config: HarvestConfig) -> Look[Prompted, Shard]:
    """What generates batches of pictures on the generator's device."""

    def look(batches: Sequence[Sequence[Prompted]]) -> Iterator[Shard]:
        return (_generated(generator, config, batch) for batch in batches)

    return look


def harvest_generations(
    generator: Generator,
    prompts: Sequence[str],
    directory: Path,
    config: HarvestConfig,
    *,
    progress: bool = True,
    overwrite: bool = False,
    replicas: Sequence[Generator] = (),
) -> ActivationStore:
    """Generate ``config.seeds`` pictures of each prompt and publish the activations of its sites.

    ``replicas`` are the same generator on further devices, which take batches in turns with it.

    The sites must share one grid. A finished store with the same inputs is returned as it is, and
    an interrupted run is resumed; another store is replaced only with ``overwrite``.
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

    looks = [_look(each, config) for each in (generator, *replicas)]
    look = across(looks) if replicas else looks[0]
    pictures = prompted(prompts[: config.limit], config.seeds)
    plan = plan_of(model, config, _data_sha256(pictures, generator))
    return make_store(pictures, look, plan, directory, progress=progress, overwrite=overwrite)

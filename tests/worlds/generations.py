"""Generated pictures in tests: a tiny generator's store, dictionary, bundle and server state."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tests.worlds import tiny as worlds
from vision_sae.activations.generations import harvest_generations
from vision_sae.activations.store import ActivationStore
from vision_sae.bundles.build import build
from vision_sae.bundles.read import Bundle
from vision_sae.config import BuildConfig, HarvestConfig, ServeConfig
from vision_sae.dictionaries.kinds.topk import TopKSae
from vision_sae.evidence.bundle import BundleEvidence
from vision_sae.labels.jobs.queue import LabelJobs
from vision_sae.labels.store import LabelStore
from vision_sae.models.generator import Generator
from vision_sae.models.noised import NoisedPictures

MODEL = "models/tiny"
SITES = ("down_blocks.2.attentions.1.update", "up_blocks.0.attentions.1.update")
NAMES = ("down", "up")
"""The bundles of `SITES`."""
PROMPTS = ["a large red star", "a small blue ring", "a green heart"]
WIDTH = 48


def generations(
    generator: Generator, directory: Path, replicas: Sequence[Generator] = ()
) -> ActivationStore:
    """Two pictures of each prompt, four steps each."""
    config = HarvestConfig(sites=SITES, seeds=2, batch_size=3, shard_images=4, thumbnail=64)
    return harvest_generations(
        generator, PROMPTS, directory, config, progress=False, replicas=replicas
    )


def bundles(generator: Generator, root: Path) -> list[Bundle]:
    """A bundle of each site, its dictionary of random unit directions scaled to the site."""
    store = generations(generator, root / "store")
    made = []
    for number, (name, site) in enumerate(zip(NAMES, SITES, strict=True)):
        random = torch.Generator().manual_seed(number)
        rows = torch.nn.functional.normalize(
            torch.randn(WIDTH, store.sites[site], generator=random), dim=1
        )
        sae = TopKSae(
            k=6,
            w_enc=rows.clone(),
            b_enc=torch.zeros(WIDTH),
            w_dec=rows,
            b_dec=store.mean(site),
        )
        worlds.write_dictionary(root / f"{name}-dictionary", sae, store, site=site)
        config = BuildConfig(exemplars=4, quantile_exemplars=2, recall_floor=0.0)
        made.append(build(store, root / f"{name}-dictionary", root / name, config, progress=False))
    return made


def tensors_alive() -> dict[int, int]:
    """Bytes of every tensor's memory, by where it lies."""
    found = (value for value in gc.get_objects() if issubclass(type(value), torch.Tensor))
    storages = (value.untyped_storage() for value in found)
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


def state(
    generator: Generator,
    found: list[Bundle],
    labelling: Any = None,
    *,
    replicas: Sequence[Generator] = (),
) -> Any:
    """What a server holds of the bundles and their generator."""
    from vision_sae_server.labelling import Labelling
    from vision_sae_server.served import Served, ServedModel
    from vision_sae_server.state import State

    config = ServeConfig(port=0, drain_seconds=2, max_generated_pixels=128)
    labels = LabelStore("sqlite://")
    others = [NoisedPictures(each) for each in replicas]
    model = ServedModel.ready(NoisedPictures(generator), [], config, replicas=others)
    served = [Served(bundle, model, labels, BundleEvidence(bundle)) for bundle in found]
    return State(
        config,
        {MODEL: model},
        {s.resource: s for s in served},
        labels,
        labelling or Labelling(),
        LabelJobs(labels),
    )

"""A real server over a tiny bundle, made from real weights and real pictures."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import databases
from vision_sae.activations.harvest import harvest
from vision_sae.bundles.build import build
from vision_sae.config import BuildConfig, DescribeConfig, HarvestConfig, ServeConfig, TrainConfig
from vision_sae.descriptions.describe import describe_bundle
from vision_sae.dictionaries.pipeline import train_dictionary
from vision_sae.models.registry import load_model
from vision_sae.pictures.folder import image_folder

CORPUS = Path(__file__).parents[1] / "vision_sae" / "demo" / "corpus"
SITE = "blocks.10.update"


@dataclass(frozen=True)
class ServedBundle:
    """A running server and what it serves."""

    address: str
    bundle: Path


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The URL of a PostgreSQL server; whoever uses it empties it first (`databases.emptied`)."""
    with databases.postgresql() as url:
        yield url


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Harvest to description, on 32 pictures of the demo corpus with the demo's real ViT."""
    root = tmp_path_factory.mktemp("tiny")
    config = HarvestConfig(sites=(SITE,), limit=32, batch_size=8, shard_images=16)
    model = load_model(config.model)
    store = harvest(model, image_folder(CORPUS / "train"), root / "store", config, progress=False)
    training = TrainConfig(
        expansion=2, k=16, steps=60, batch_size=1024, dead_after=20_000, learning_rate=3e-3
    )
    train_dictionary(store, root / "dictionary", training, {}, progress=False)
    build(store, root / "dictionary", root / "tiny", BuildConfig(), progress=False)
    describe_bundle(
        root / "tiny", DescribeConfig(describer="caption-pmi", metrics=()), progress=False
    )
    return root / "tiny"


@pytest.fixture(scope="session")
def served(tiny_bundle: Path) -> Iterator[ServedBundle]:
    """The bundle behind a server on a free loopback port."""
    from vision_sae_server.app import Server
    from vision_sae_server.state import load_state

    state = load_state([tiny_bundle], ServeConfig(port=0, drain_seconds=2))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start() -> Server:
        server = Server(state)
        await server.start()
        return server

    server = asyncio.run_coroutine_threadsafe(start(), loop).result(60)
    yield ServedBundle(f"127.0.0.1:{server.port}", tiny_bundle)
    asyncio.run_coroutine_threadsafe(server.stop(), loop).result(60)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()

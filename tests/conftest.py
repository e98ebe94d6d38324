"""A real server over a tiny bundle, made from real weights and real pictures."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.worlds import databases
from tests.worlds.demo_bundle import of_demo_pictures
from vision_sae.config import DescribeConfig, ServeConfig
from vision_sae.descriptions.describe import describe_bundle

pytest_plugins = ["tests.worlds.fixtures", "tests.traced"]


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
    path = of_demo_pictures(root)
    describe_bundle(path, DescribeConfig(describer="caption-pmi", metrics=()), progress=False)
    return path


@pytest.fixture(scope="session")
def served(tiny_bundle: Path) -> Iterator[ServedBundle]:
    """The bundle behind a server on a free loopback port."""
    from vision_sae_server.app import Server
    from vision_sae_server.loading import load_state

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

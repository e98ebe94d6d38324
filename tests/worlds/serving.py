"""Servers of tests, in this process, over a bundle of known vectors and a tiny model."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tests.worlds import tiny as worlds
from vision_sae.bundles.build import build
from vision_sae.bundles.read import Bundle, read_bundle
from vision_sae.config import BuildConfig, DescribeConfig, ServeConfig
from vision_sae.descriptions.describe import describe_bundle
from vision_sae.evidence.bundle import BundleEvidence
from vision_sae.labels.jobs.queue import LabelJobs
from vision_sae.labels.store import LabelStore

DICTIONARY = "dictionaries/zoo"
MODEL = "models/tiny"
WIDTH = 32
FIRING = (0, 1, 2)
"""The features of the zoo that fire: in pictures of cats, of dogs, and in one of a fox."""
CAPTIONS = ["a cat", "a dog"] * 20
PLAIN = DescribeConfig(describer="caption-pmi", metrics=())


def zoo(root: Path, *, described: bool = True, folder: str = "") -> Bundle:
    """40 pictures of 4 patches; feature 0 fires in cats, 1 in dogs, 2 in one picture of a fox."""
    vectors = np.zeros((41, 4, WIDTH))
    for image in range(40):
        vectors[image, image % 4, image % 2] = 1 + image
    vectors[40, 2, 2] = 1
    captions = [*CAPTIONS, "a fox"]
    store = worlds.write_store(root / "store", [vectors], captions=captions, folder=folder)
    worlds.write_dictionary(root / "d", worlds.identity_sae(WIDTH, 2), store)
    build(store, root / "d", root / "zoo", BuildConfig(), progress=False)
    if described:
        describe_bundle(root / "zoo", PLAIN, progress=False)
    return read_bundle(root / "zoo")


def add(held: Any, *bundles: Bundle) -> None:
    """Have a server hold further bundles of its first model."""
    from vision_sae_server.served import Served

    model = next(iter(held.models.values()))
    for bundle in bundles:
        served = Served(bundle, model, held.labels, BundleEvidence(bundle))
        held.dictionaries[served.resource] = served


def state(
    bundle: Bundle,
    labels: LabelStore,
    labelling: Any = None,
    *,
    model: Any = None,
    replicas: Sequence[Any] = (),
) -> Any:
    """What a server holds of one bundle, with its model, or else a tiny one that fits the zoo."""
    from vision_sae_server.labelling import Labelling
    from vision_sae_server.served import Served, ServedModel
    from vision_sae_server.state import State

    config = ServeConfig(port=0, drain_seconds=2)
    model = model or worlds.tiny_model(img_size=16)
    held = ServedModel.ready(model, [], config, replicas=replicas)
    served = Served(bundle, held, labels, BundleEvidence(bundle))
    return State(
        config,
        {held.resource: held},
        {served.resource: served},
        labels,
        labelling or Labelling(),
        LabelJobs(labels),
    )


@contextmanager
def serving(held: Any) -> Iterator[grpc.Channel]:
    """A channel to a server on a free port."""
    with address(held) as where, grpc.insecure_channel(where) as channel:
        yield channel


@contextmanager
def address(held: Any) -> Iterator[str]:
    """Where a server listens on a free port."""
    from vision_sae_server.app import Server

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start() -> Server:
        server = Server(held)
        await server.start()
        return server

    server = asyncio.run_coroutine_threadsafe(start(), loop).result(30)
    try:
        yield f"127.0.0.1:{server.port}"
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def refusal(error: grpc.RpcError) -> tuple[grpc.StatusCode, str, str]:
    """(code, reason, field) of what a call raised."""
    info = error_details_pb2.ErrorInfo()
    for detail in rpc_status.from_call(error).details:
        if detail.Is(info.DESCRIPTOR):
            detail.Unpack(info)
    return error.code(), info.reason, info.metadata["field"]

"""The way of a server from its command line to its end.

What is quick to tell is told first: ports are taken, and all that was named is looked for, before
torch is imported. Nothing is looked up on a network unless that was asked for.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import grpc.aio

from vision_sae.artifacts import BUNDLE, NEURONS
from vision_sae.config import DescribeConfig, ServeConfig
from vision_sae.descriptions.database import Database
from vision_sae.hosts import address_of
from vision_sae.memory import check_available, keep_freed_memory
from vision_sae.models.names import check_contrastive, check_model, weights_bytes
from vision_sae.resources import check_names
from vision_sae_server.binding import bind, check_bind, serve_metrics
from vision_sae_server.logs import Steps, configure

if TYPE_CHECKING:
    from vision_sae_server.state import State

_LOG = logging.getLogger("vision_sae_server")
_SWITCH_SECONDS = 0.0005
"""How long a thread that makes an answer may keep the interpreter from one that runs a model, which
asks for it between any two operations. Python's own 5 ms cost a model a good part of its rate."""
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
"""Variables of the environment that keep hubs' libraries from the network. They are read when these
libraries are imported."""


def check_served(bundles: Sequence[Path], config: ServeConfig) -> None:
    """Refuse what is named and cannot be served, by what manifests and names tell."""
    check_names(bundles)
    models: dict[str, None] = {}
    for path in bundles:
        name = str(BUNDLE.manifest(path)["model"]["name"])
        check_model(name, field="bundle")
        models[name] = None
    for folder in config.neurons:
        NEURONS.manifest(folder)
    if config.clip:
        check_contrastive(config.clip)
        models[config.clip] = None
    needed = sum(weights_bytes(name) for name in models)
    check_available(needed, f"loading {' and '.join(models)}", field="bundle")
    if config.labels:
        Database(config.labels).close()


def run(
    bundles: Sequence[Path],
    config: ServeConfig,
    describe: DescribeConfig | None = None,
    *,
    allow_insecure_bind: bool = False,
    allow_downloads: bool = False,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain; see `vision_sae_server.state.load_state`.

    ``allow_downloads`` lets hubs be asked for models that are not on this machine.
    """
    step = Steps()
    configure(config.log_level)
    check_bind(config.host, allow_insecure=allow_insecure_bind)
    check_served(bundles, config)
    if not allow_downloads:
        os.environ |= dict.fromkeys(_OFFLINE, "1")
    with asyncio.Runner() as runner:
        bound = runner.run(_take_ports(config, step))
        try:
            state = _loaded(bundles, config, describe, step)  # outside of the loop: Ctrl-C ends it
            runner.run(_serve(state, bound, step))
        finally:
            runner.run(bound[0].stop(None))  # gives the port back, whatever went wrong


async def _take_ports(config: ServeConfig, step: Steps) -> tuple[grpc.aio.Server, int]:
    """See `bind`; the metrics are there from now on."""
    server, port = bind(config)
    step(f"{address_of(config.host, port)} is taken")
    if config.metrics_port is not None:
        step(f"metrics are at {serve_metrics(config)}")
    return server, port


def _loaded(
    bundles: Sequence[Path], config: ServeConfig, describe: DescribeConfig | None, step: Steps
) -> State:
    """All that is served."""
    sys.setswitchinterval(_SWITCH_SECONDS)
    keep_freed_memory()
    step("importing torch and the libraries of models")
    from vision_sae_server.state import load_state

    return load_state(bundles, config, describe, step=step)


async def _serve(state: State, bound: tuple[grpc.aio.Server, int], step: Steps) -> None:
    """Serve until told to stop, and drain."""
    from vision_sae_server.app import Server

    server = Server(state, bound)
    where = address_of(state.config.host, await server.start())
    step(f"serving at {where}")
    print(f"serving {len(state.dictionaries)} dictionaries on {where}", flush=True)
    if state.labels.database.in_memory:
        _LOG.warning("labels and jobs last as long as this server; keep them with --labels FILE")
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    await stopping.wait()
    _LOG.info("draining")
    await server.stop()

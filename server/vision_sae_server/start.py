"""Runs a server from the command line until it is stopped.

Quick checks come first: ports are bound, and bundles, models and databases are checked, before
torch is imported. The network is used only with ``allow_downloads``.
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

from vision_sae import devices
from vision_sae.artifacts import BUNDLE, NEURONS
from vision_sae.config import DescribeConfig, ServeConfig
from vision_sae.errors import InvalidInputError
from vision_sae.hosts import address_of
from vision_sae.labels.database import Database
from vision_sae.memory import check_available, keep_freed_memory
from vision_sae.models.names import check_contrastive, check_model, weights_bytes
from vision_sae.resources import check_names
from vision_sae_server.runtime.binding import bind, check_bind, serve_metrics
from vision_sae_server.runtime.logs import Steps, configure

if TYPE_CHECKING:
    from vision_sae_server.state import State

_LOG = logging.getLogger("vision_sae_server")
_SWITCH_SECONDS = 0.0005
"""The interpreter's switch interval: how long a thread that fills an answer may hold the
interpreter lock while a thread that runs a model waits for the lock, which it does between any two
operations. Python's default of 5 ms costs a model a good part of its rate."""
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
"""Environment variables that keep the hubs' libraries off the network. The libraries read them when
they are imported."""


def check_served(bundles: Sequence[Path], config: ServeConfig) -> None:
    """Check, from manifests and names alone, that bundles, models and labels can be served."""
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
        if config.clip not in models and "," in config.devices.get(config.clip, ""):
            raise InvalidInputError(
                f"{config.clip} labels, which takes one device; several are for a model of a "
                "bundle that is served",
                field="serve.devices",
            )
        models[config.clip] = None
    for name in config.devices:
        if name not in models:
            raise InvalidInputError(
                f"{name} is not served, so it has no device; served are {', '.join(models)}",
                field="serve.devices",
            )
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
    """Serve until SIGTERM or SIGINT, then drain; see `vision_sae_server.loading.load_state`.

    With ``allow_downloads``, models that are not on this machine are fetched from their hubs.
    """
    step = Steps()
    configure(config.log_level)
    check_bind(config.host, allow_insecure=allow_insecure_bind)
    check_served(bundles, config)
    if not allow_downloads:
        os.environ |= dict.fromkeys(_OFFLINE, "1")
    with devices.using(tell=step), asyncio.Runner() as runner:
        bound = runner.run(_take_ports(config, step))
        try:
            state = _loaded(
                bundles, config, describe, step
            )  # not in the event loop, so Ctrl-C works
            runner.run(_serve(state, bound, step))
        finally:
            runner.run(bound[0].stop(None))  # releases the port, whatever went wrong


async def _take_ports(config: ServeConfig, step: Steps) -> tuple[grpc.aio.Server, int]:
    """Bind the ports; see `bind`. The metrics endpoint answers from now on."""
    server, port = bind(config)
    step(f"{address_of(config.host, port)} is taken")
    if config.metrics_port is not None:
        step(f"metrics are at {serve_metrics(config)}")
    return server, port


def _loaded(
    bundles: Sequence[Path], config: ServeConfig, describe: DescribeConfig | None, step: Steps
) -> State:
    """Import torch and load the server's state."""
    sys.setswitchinterval(_SWITCH_SECONDS)
    keep_freed_memory()
    step("importing torch and the libraries of models")
    from vision_sae_server.loading import load_state

    state = load_state(bundles, config, describe, step=step)
    step(f"computing on {', '.join(map(devices.shown, state.devices))}")
    return state


async def _serve(state: State, bound: tuple[grpc.aio.Server, int], step: Steps) -> None:
    """Serve until a signal arrives, then drain."""
    from vision_sae_server.app import Server

    server = Server(state, bound)
    where = address_of(state.config.host, await server.start())
    step(f"serving at {where}")
    print(f"serving {len(state.dictionaries)} dictionaries on {where}", flush=True)
    if state.labels.database.in_memory:
        _LOG.warning("labels and jobs end with this server; keep them with --labels FILE")
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    await stopping.wait()
    _LOG.info("draining")
    await server.stop()

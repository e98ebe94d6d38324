"""Assembling the server, running it, and stopping it without losing an accepted call."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.protobuf.descriptor import FileDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection
from prometheus_client import start_http_server

from vision_sae.config import DescribeConfig, ServeConfig
from vision_sae.errors import InvalidInputError
from vision_sae.memory import keep_freed_memory
from vision_sae.v1 import (
    attribution_service_pb2,
    attribution_service_pb2_grpc,
    catalog_service_pb2,
    catalog_service_pb2_grpc,
    description_service_pb2,
    description_service_pb2_grpc,
    generation_service_pb2,
    generation_service_pb2_grpc,
    intervention_service_pb2,
    intervention_service_pb2_grpc,
    label_job_service_pb2,
    label_job_service_pb2_grpc,
    search_service_pb2,
    search_service_pb2_grpc,
)
from vision_sae_server.attribution import AttributionServicer
from vision_sae_server.catalog import CatalogServicer
from vision_sae_server.description import DescriptionServicer
from vision_sae_server.generation import GenerationServicer
from vision_sae_server.interceptor import Gate
from vision_sae_server.intervention import InterventionServicer
from vision_sae_server.job_lane import JobLane
from vision_sae_server.label_jobs import LabelJobServicer
from vision_sae_server.search import SearchServicer
from vision_sae_server.state import State, load_state

_LOG = logging.getLogger("vision_sae_server")
_FILES: tuple[FileDescriptor, ...] = (
    catalog_service_pb2.DESCRIPTOR,
    attribution_service_pb2.DESCRIPTOR,
    intervention_service_pb2.DESCRIPTOR,
    search_service_pb2.DESCRIPTOR,
    description_service_pb2.DESCRIPTOR,
    generation_service_pb2.DESCRIPTOR,
    label_job_service_pb2.DESCRIPTOR,
)
_SWITCH_SECONDS = 0.0005
"""How long a thread that makes an answer may keep the interpreter from one that runs a model, which
asks for it between any two operations. Python's own 5 ms cost a model a good part of its rate."""
_LAME_DUCK_SECONDS = 0.5
"""Between telling balancers to go elsewhere and refusing new calls."""


def _servicers(
    state: State, lane: JobLane, capabilities: list[catalog_service_pb2.Capability]
) -> dict[str, Any]:
    """{service: (servicer, function that adds it)}"""
    return {
        "CatalogService": (
            CatalogServicer(state, capabilities),
            catalog_service_pb2_grpc.add_CatalogServiceServicer_to_server,
        ),
        "AttributionService": (
            AttributionServicer(state),
            attribution_service_pb2_grpc.add_AttributionServiceServicer_to_server,
        ),
        "SearchService": (
            SearchServicer(state),
            search_service_pb2_grpc.add_SearchServiceServicer_to_server,
        ),
        "DescriptionService": (
            DescriptionServicer(state),
            description_service_pb2_grpc.add_DescriptionServiceServicer_to_server,
        ),
        "InterventionService": (
            InterventionServicer(state),
            intervention_service_pb2_grpc.add_InterventionServiceServicer_to_server,
        ),
        "GenerationService": (
            GenerationServicer(state),
            generation_service_pb2_grpc.add_GenerationServiceServicer_to_server,
        ),
        "LabelJobService": (
            LabelJobServicer(state, lane.wake),
            label_job_service_pb2_grpc.add_LabelJobServiceServicer_to_server,
        ),
    }


def _note(state: State, service: str, rpc: str) -> str:
    """What of an rpc this server cannot do."""
    if rpc == "ScoreDescription" and state.labelling.scorer is None:
        return "answers FAILED_PRECONDITION: the server was started without a contrastive model"
    if rpc == "Generate" and not state.generates:
        return "answers INVALID_ARGUMENT: none of the models makes pictures of prompts"
    if rpc == "SearchFeatures" and state.labelling.meanings is None:
        return "texts are searched by the words of labels only"
    if service in ("DescriptionService", "LabelJobService") and state.labels.database.in_memory:
        return "labels and jobs are kept in memory and last as long as the server"
    return ""


class Server:
    """One server: `start`, then `stop`."""

    def __init__(self, state: State) -> None:
        config = state.config
        capabilities: list[catalog_service_pb2.Capability] = []
        self._lane = JobLane(state)
        servicers = _servicers(state, self._lane, capabilities)
        capabilities += [
            catalog_service_pb2.Capability(
                service=name, rpc=rpc, served=True, note=_note(state, name, rpc)
            )
            for file in _FILES
            for name, service in file.services_by_name.items()
            for rpc in service.methods_by_name
        ]
        self._state = state
        self._server = grpc.aio.server(
            interceptors=(Gate(config),),
            options=(
                ("grpc.so_reuseport", 0),  # a second server on this port must fail, not share
                ("grpc.max_receive_message_length", config.max_message_bytes),
                ("grpc.max_send_message_length", config.max_message_bytes),
            ),
        )
        for servicer, add in servicers.values():
            add(servicer, self._server)
        self._health = HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._services = [f"vision_sae.v1.{name}" for name in servicers]
        reflection.enable_server_reflection(
            [*self._services, "grpc.health.v1.Health", reflection.SERVICE_NAME], self._server
        )
        self.port = 0

    async def _set_health(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for service in ("", *self._services):
            await self._health.set(service, status)

    async def start(self) -> int:
        """Bind and serve; returns the port."""
        config = self._state.config
        try:
            self.port = self._server.add_insecure_port(f"{config.host}:{config.port}")
        except RuntimeError as error:
            raise InvalidInputError(
                f"cannot bind {config.host}:{config.port}; is another server there? Choose another "
                "--port, or 0 for any",
                field="port",
            ) from error
        await self._server.start()
        self._lane.start()
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)
        return self.port

    async def stop(self) -> None:
        """Drain: not serving, lame duck, finish accepted calls, then the lanes."""
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        self._state.stopping.set()
        await asyncio.sleep(_LAME_DUCK_SECONDS)
        await self._server.stop(self._state.config.drain_seconds)
        await asyncio.to_thread(self._lane.join)
        await asyncio.to_thread(self._state.close)


def check_bind(host: str, *, allow_insecure: bool) -> None:
    """Refuse an address that others can reach, unless told to: there is no authentication yet."""
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    if not loopback and not allow_insecure:
        raise InvalidInputError(
            f"{host} can be reached from other machines and this server asks nobody who they are; "
            "bind 127.0.0.1, or pass --allow-insecure-bind behind a proxy that does",
            field="host",
        )


async def run(
    bundles: Sequence[Path],
    config: ServeConfig,
    describe: DescribeConfig | None = None,
    *,
    allow_insecure_bind: bool = False,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain; see `load_state`."""
    check_bind(config.host, allow_insecure=allow_insecure_bind)
    sys.setswitchinterval(_SWITCH_SECONDS)
    keep_freed_memory()
    if config.metrics_port is not None:
        start_http_server(config.metrics_port, addr=config.host)
    state = load_state(bundles, config, describe)
    server = Server(state)
    port = await server.start()
    print(f"serving {len(bundles)} dictionaries on {config.host}:{port}", flush=True)
    if state.labels.database.in_memory:
        _LOG.warning("labels and jobs last as long as this server; keep them with --labels FILE")
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    await stopping.wait()
    _LOG.info("draining")
    await server.stop()

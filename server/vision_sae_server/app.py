"""Assembles the server, and stops it without losing an accepted call."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio
from google.protobuf.descriptor import FileDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

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
from vision_sae_server.job_lane import JobLane
from vision_sae_server.runtime.binding import bind
from vision_sae_server.services.attribution import AttributionServicer
from vision_sae_server.services.catalog import CatalogServicer
from vision_sae_server.services.description import DescriptionServicer
from vision_sae_server.services.generation import GenerationServicer
from vision_sae_server.services.intervention import InterventionServicer
from vision_sae_server.services.label_jobs import LabelJobServicer
from vision_sae_server.services.search import SearchServicer
from vision_sae_server.state import State

_FILES: tuple[FileDescriptor, ...] = (
    catalog_service_pb2.DESCRIPTOR,
    attribution_service_pb2.DESCRIPTOR,
    intervention_service_pb2.DESCRIPTOR,
    search_service_pb2.DESCRIPTOR,
    description_service_pb2.DESCRIPTOR,
    generation_service_pb2.DESCRIPTOR,
    label_job_service_pb2.DESCRIPTOR,
)
_LAME_DUCK_SECONDS = 0.5
"""Seconds between the health status NOT_SERVING, for load balancers, and the refusal of calls."""


def _servicers(
    state: State, lane: JobLane, capabilities: list[catalog_service_pb2.Capability]
) -> dict[str, Any]:
    """{service: (servicer, function that adds the servicer to a gRPC server)}"""
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
    """The part of an rpc that this server cannot do, in words; empty when it can do all."""
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
    """One server: call `start`, then `stop`."""

    def __init__(self, state: State, bound: tuple[grpc.aio.Server, int] | None = None) -> None:
        """``bound`` is the result of an earlier `bind`; without it, the port is bound here."""
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
        self._server, self.port = bound or bind(state.config)
        for servicer, add in servicers.values():
            add(servicer, self._server)
        self._health = HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._services = [f"vision_sae.v1.{name}" for name in servicers]
        reflection.enable_server_reflection(
            [*self._services, "grpc.health.v1.Health", reflection.SERVICE_NAME], self._server
        )

    async def _set_health(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for service in ("", *self._services):
            await self._health.set(service, status)

    async def start(self) -> int:
        """Begin to serve; returns the port."""
        await self._server.start()
        self._lane.start()
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)
        return self.port

    async def stop(self) -> None:
        """Drain: report NOT_SERVING, wait, finish the accepted calls, then close the lanes."""
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        self._state.stopping.set()
        await asyncio.sleep(_LAME_DUCK_SECONDS)
        await self._server.stop(self._state.config.drain_seconds)
        await asyncio.to_thread(self._lane.join)
        await asyncio.to_thread(self._state.close)

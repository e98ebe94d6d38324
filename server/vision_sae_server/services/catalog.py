"""CatalogService: the models, dictionaries and features that are served."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

import grpc

from vision_sae.bundles.patch_queries import DEEPEST
from vision_sae.devices import device_name
from vision_sae.v1 import catalog_service_pb2 as pb
from vision_sae.v1 import catalog_service_pb2_grpc
from vision_sae.version import CODE_VERSION
from vision_sae_server.answers.dictionaries import dictionary_message
from vision_sae_server.answers.feature_values import FILTER_FIELDS, ORDER_FIELDS, values_of_all
from vision_sae_server.answers.features import feature_messages
from vision_sae_server.answers.models import model_message
from vision_sae_server.requests.listing import matcher, page, sort
from vision_sae_server.served import Units
from vision_sae_server.state import State

_DICTIONARY_FIELDS = ("model", "site", "architecture", "width")
_LIBRARIES = (
    *("torch", "torchvision", "timm", "open_clip_torch", "diffusers", "transformers"),
    *("numpy", "faiss-cpu", "faiss-gpu", "grpcio", "pillow"),
)
_API_VERSION = pb.DESCRIPTOR.package.rpartition(".")[2]
"""The version of the contract: the last part of its package name."""
_MAX_PAGE = 1000


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            versions[library] = version(library)
        except ModuleNotFoundError:
            continue
    return versions


class CatalogServicer(catalog_service_pb2_grpc.CatalogServiceServicer):
    """See ``catalog_service.proto``."""

    def __init__(self, state: State, capabilities: list[pb.Capability]) -> None:
        self._state, self._capabilities = state, capabilities

    async def GetServerInfo(
        self, request: pb.GetServerInfoRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.GetServerInfoResponse:
        """Versions, limits and capabilities."""
        config = self._state.config
        return pb.GetServerInfoResponse(
            version=CODE_VERSION,
            api_version=_API_VERSION,
            limits=pb.ServerLimits(
                max_image_bytes=config.max_image_bytes,
                max_image_pixels=config.max_image_pixels,
                max_request_bytes=config.max_message_bytes,
                max_response_bytes=config.max_message_bytes,
                max_queued_calls=config.max_queue,
                max_bytes_in_flight=config.max_queue_bytes,
                max_page_size=_MAX_PAGE,
                max_stream_items_in_flight=config.max_stream_items,
                max_generated_pixels=config.max_generated_pixels if self._state.generates else 0,
                max_search_hits=DEEPEST,
            ),
            capabilities=self._capabilities,
            describers=self._state.labelling.describers,
            library_versions=_versions(),
            device=", ".join(self._state.devices),
            device_names={name: device_name(name) for name in self._state.devices},
        )

    async def ListModels(
        self, request: pb.ListModelsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.ListModelsResponse:
        """All models, by name."""
        names, following = page(sorted(self._state.models), request.page_size, request.page_token)
        return pb.ListModelsResponse(
            models=[model_message(self._state.models[name]) for name in names],
            next_page_token=following,
        )

    async def GetModel(
        self, request: pb.GetModelRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.GetModelResponse:
        """One model."""
        served = self._state.model(request.name, "name")
        return pb.GetModelResponse(model=model_message(served, class_names=True))

    async def ListDictionaries(
        self, request: pb.ListDictionariesRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.ListDictionariesResponse:
        """All dictionaries, sorted by name; raw neurons come last."""
        matches = matcher(request.filter, _DICTIONARY_FIELDS)
        everything: dict[str, Units] = {}
        everything |= sorted(self._state.dictionaries.items())
        everything |= sorted(self._state.neurons.items())
        messages = await self._state.searching.run(
            lambda: [*map(dictionary_message, everything.values())]
        )
        kept = [
            d for d in messages if matches({name: getattr(d, name) for name in _DICTIONARY_FIELDS})
        ]
        rows, following = page(kept, request.page_size, request.page_token)
        return pb.ListDictionariesResponse(dictionaries=rows, next_page_token=following)

    async def GetDictionary(
        self, request: pb.GetDictionaryRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.GetDictionaryResponse:
        """One dictionary."""
        served = self._state.units(request.name)
        message = await self._state.searching.run(lambda: dictionary_message(served))
        return pb.GetDictionaryResponse(dictionary=message)

    async def ListFeatures(
        self, request: pb.ListFeaturesRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.ListFeaturesResponse:
        """The features of a dictionary, filtered, ordered and in pages."""
        served = self._state.units(request.parent)
        matches = matcher(request.filter, FILTER_FIELDS)

        def listing() -> pb.ListFeaturesResponse:
            values = values_of_all(served)
            kept = [index for index, row in values.items() if matches(row)]
            ordered = sort(kept, request.order_by, ORDER_FIELDS, values.__getitem__)
            rows, following = page(ordered, request.page_size, request.page_token)
            return pb.ListFeaturesResponse(
                features=feature_messages(served, rows, request.view, request.exemplars),
                next_page_token=following,
                total_size=len(ordered),
            )

        return await self._state.searching.run(listing)

    async def GetFeature(
        self, request: pb.GetFeatureRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.GetFeatureResponse:
        """One feature."""
        served, index = self._state.unit(request.name)
        (message,) = await self._state.searching.run(
            lambda: feature_messages(served, [index], request.view, request.exemplars)
        )
        return pb.GetFeatureResponse(feature=message)

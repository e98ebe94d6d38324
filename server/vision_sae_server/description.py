"""DescriptionService: what a feature means, in words, with the evidence."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import grpc

from vision_sae.config import DescribeConfig
from vision_sae.descriptions.caption_pmi import CaptionPmi
from vision_sae.descriptions.describe import describer
from vision_sae.descriptions.evidence.bundle import BundleEvidence
from vision_sae.errors import NotFoundError
from vision_sae.v1 import description_service_pb2 as pb
from vision_sae.v1 import description_service_pb2_grpc, feature_pb2
from vision_sae_server import messages
from vision_sae_server.state import State


class DescriptionServicer(description_service_pb2_grpc.DescriptionServiceServicer):
    """See ``description_service.proto``."""

    def __init__(self, state: State) -> None:
        self._state = state

    async def DescribeFeature(
        self, request: pb.DescribeFeatureRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.DescribeFeatureResponse:
        """The stored description, or a new one from the bundle's captions."""
        served, index = self._state.feature(request.feature)
        if request.describer not in ("", CaptionPmi.name):
            raise NotFoundError(
                f"there is no describer {request.describer!r}; this server has {CaptionPmi.name}",
                field="describer",
            )
        stored = None if request.force else served.bundle.descriptions.get(index)

        def describe() -> pb.DescribeFeatureResponse:
            row = stored
            if row is None:
                evidence = BundleEvidence(served.bundle)
                (made,) = describer(DescribeConfig()).describe(evidence, [index])
                row = asdict(made)
            full = request.view == feature_pb2.FEATURE_VIEW_FULL
            return pb.DescribeFeatureResponse(
                description=messages.description(served, row, request.exemplars if full else None),
                from_store=stored is not None,
            )

        return await self._state.searching.run(describe)

"""SearchService: where else does it happen?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc

from vision_sae.bundles.patch_search import (
    Firing,
    Hit,
    by_code,
    by_text_aligned,
    by_vector,
    collapsed,
)
from vision_sae.errors import InvalidInputError
from vision_sae.v1 import exemplar_pb2, search_service_pb2_grpc
from vision_sae.v1 import search_service_pb2 as pb
from vision_sae_server import messages
from vision_sae_server.feature_search import search_features
from vision_sae_server.listing import page
from vision_sae_server.patch_queries import PatchQueries
from vision_sae_server.served import Served
from vision_sae_server.state import State

_DEFAULT_PAGE = 20
DEEPEST = 2000
"""Hits that a query by likeness can be paged through."""


class SearchServicer(search_service_pb2_grpc.SearchServiceServicer):
    """See ``search_service.proto``."""

    def __init__(self, state: State) -> None:
        self._state = state

    async def SearchPatches(
        self, request: pb.SearchPatchesRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.SearchPatchesResponse:
        """Patches that fire a feature, or that are like what is shown, among those allowed."""
        if request.WhichOneof("query") == "feature":
            return await self._by_feature(request)
        served = self._state.dictionary(request.dictionary)
        queries = PatchQueries(self._state, served)
        query = await queries.query(request)

        def find() -> pb.SearchPatchesResponse:
            allowed = queries.allowed(request, None)
            bundle = served.bundle
            response = pb.SearchPatchesResponse(
                dictionary=served.resource, unread_texts=queries.unread
            )
            if query.vector is not None:
                hits = by_vector(bundle, query.vector, DEEPEST, allowed)
                response.space = pb.SEARCH_SPACE_VECTOR
                response.recall_at_10 = float(bundle.manifest["patch_index"]["recall_at_10"])
            elif query.aligned is not None:
                hits = by_text_aligned(bundle, query.aligned, DEEPEST, allowed)
                response.space = pb.SEARCH_SPACE_TEXT_ALIGNED
                response.recall_at_10 = float(bundle.manifest["text_aligned_index"]["recall_at_10"])
            else:
                hits = by_code(bundle, query.code or {}, DEEPEST, allowed)
                response.space, response.recall_at_10 = pb.SEARCH_SPACE_CODE, 1.0
            return self._answer(served, request, hits, response, queries.filtered_by(request))

        return await self._state.searching.run(find)

    async def SearchFeatures(
        self, request: pb.SearchFeaturesRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.SearchFeaturesResponse:
        """Features by their labels, by direction, or by what a picture fires."""
        return await search_features(self._state, request)

    async def _by_feature(self, request: pb.SearchPatchesRequest) -> pb.SearchPatchesResponse:
        served, index = self._state.feature(request.feature)
        if request.dictionary not in ("", served.resource):
            raise InvalidInputError(
                f"{request.feature} is not of {request.dictionary}; leave dictionary empty",
                field="dictionary",
            )

        queries = PatchQueries(self._state, served)

        def find() -> pb.SearchPatchesResponse:
            hits = Firing(served.bundle, index, queries.allowed(request, index))
            response = pb.SearchPatchesResponse(recall_at_10=1.0, dictionary=served.resource)
            return self._answer(served, request, hits, response, index)

        return await self._state.searching.run(find)

    @staticmethod
    def _answer(
        served: Served,
        request: pb.SearchPatchesRequest,
        hits: Sequence[Hit],
        response: pb.SearchPatchesResponse,
        feature: int | None = None,
    ) -> pb.SearchPatchesResponse:
        """A page of hits, with the activation of the ``feature`` that was asked for or that the
        filter is about."""
        if request.collapse_near_duplicates:
            hits = collapsed(served.bundle, hits[:DEEPEST])
        shown, following = page(hits, request.page_size, request.page_token, _DEFAULT_PAGE)
        options = exemplar_pb2.ExemplarOptions(
            thumbnail_pixels=request.thumbnail_pixels, omit_thumbnails=request.omit_thumbnails
        )
        thumbnail = messages.thumbnail_side(options)
        for hit in shown:
            patch = messages.indexed_patch(served.evidence, hit.patch, thumbnail=thumbnail)
            if feature is not None:
                patch.activation = served.bundle.activation(hit.patch, feature)
                patch.quantile = served.quantile(feature, patch.activation)
            response.hits.append(
                pb.PatchHit(patch=patch, score=hit.score, collapsed_count=hit.collapsed)
            )
        response.next_page_token = following
        return response

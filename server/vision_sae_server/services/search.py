"""SearchService: searches for patches and for features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc

from vision_sae.bundles.patch_queries import DEEPEST, Space, nearest
from vision_sae.bundles.patch_search import FiringPatches, PatchHit, collapsed
from vision_sae.errors import InvalidInputError
from vision_sae.v1 import exemplar_pb2, search_service_pb2_grpc
from vision_sae.v1 import search_service_pb2 as pb
from vision_sae_server.answers.exemplars import indexed_patch, thumbnail_side
from vision_sae_server.answers.feature_search import search_features
from vision_sae_server.requests.listing import page
from vision_sae_server.requests.patch_queries import PatchQueries
from vision_sae_server.served import Served
from vision_sae_server.state import State

_DEFAULT_PAGE = 20
_SPACES: dict[Space, pb.SearchSpace.ValueType] = {
    "vector": pb.SEARCH_SPACE_VECTOR,
    "code": pb.SEARCH_SPACE_CODE,
    "text": pb.SEARCH_SPACE_TEXT_ALIGNED,
}


class SearchServicer(search_service_pb2_grpc.SearchServiceServicer):
    """See ``search_service.proto``."""

    def __init__(self, state: State) -> None:
        self._state = state

    async def SearchPatches(
        self, request: pb.SearchPatchesRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.SearchPatchesResponse:
        """Patches that fire a feature or are similar to a query, among those that the filter
        allows."""
        if request.WhichOneof("query") == "feature":
            return await self._by_feature(request)
        served = self._state.dictionary(request.dictionary)
        queries = PatchQueries(self._state, served)
        query = await queries.query(request)

        def find() -> pb.SearchPatchesResponse:
            allowed = queries.allowed(request, None)
            hits, recall = nearest(served.bundle, query, allowed)
            response = pb.SearchPatchesResponse(
                dictionary=served.resource,
                unread_texts=queries.unread,
                space=_SPACES[query.space],
                recall_at_10=recall,
            )
            return self._answer(served, request, hits, response, queries.filtered_by(request))

        return await self._state.searching.run(find)

    async def SearchFeatures(
        self, request: pb.SearchFeaturesRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.SearchFeaturesResponse:
        """Features by their labels, by direction, or by their activation in a picture."""
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
            hits = FiringPatches(served.bundle, index, queries.allowed(request, index))
            response = pb.SearchPatchesResponse(recall_at_10=1.0, dictionary=served.resource)
            return self._answer(served, request, hits, response, index)

        return await self._state.searching.run(find)

    @staticmethod
    def _answer(
        served: Served,
        request: pb.SearchPatchesRequest,
        hits: Sequence[PatchHit],
        response: pb.SearchPatchesResponse,
        feature: int | None = None,
    ) -> pb.SearchPatchesResponse:
        """A page of hits, each with the activation of ``feature``, the feature of the query or of
        the filter."""
        if request.collapse_near_duplicates:
            hits = collapsed(served.bundle, hits[:DEEPEST])
        shown, following = page(hits, request.page_size, request.page_token, _DEFAULT_PAGE)
        options = exemplar_pb2.ExemplarOptions(
            thumbnail_pixels=request.thumbnail_pixels, omit_thumbnails=request.omit_thumbnails
        )
        thumbnail = thumbnail_side(options)
        for hit in shown:
            patch = indexed_patch(served.evidence, hit.patch, thumbnail=thumbnail)
            if feature is not None:
                patch.activation = served.bundle.activation(hit.patch, feature)
                patch.quantile = served.quantile(feature, patch.activation)
            response.hits.append(
                pb.PatchHit(patch=patch, score=hit.score, collapsed_count=hit.collapsed)
            )
        response.next_page_token = following
        return response

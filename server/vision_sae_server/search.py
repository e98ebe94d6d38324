"""SearchService: where else does it happen?"""

from __future__ import annotations

from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from vision_sae.bundles.patch_index import search
from vision_sae.errors import InvalidInputError, NotServedError
from vision_sae.v1 import exemplar_pb2, search_service_pb2_grpc
from vision_sae.v1 import search_service_pb2 as pb
from vision_sae.vectors import normalised
from vision_sae_server import messages
from vision_sae_server.encodings import site_vectors
from vision_sae_server.feature_search import search_features
from vision_sae_server.listing import page
from vision_sae_server.regions import region_mask
from vision_sae_server.state import Served, State

_DEFAULT_PAGE = 20
_DEEPEST = 2000
"""Hits that a region query can be paged through."""


class SearchServicer(search_service_pb2_grpc.SearchServiceServicer):
    """See ``search_service.proto``."""

    def __init__(self, state: State) -> None:
        self._state = state

    async def SearchPatches(
        self, request: pb.SearchPatchesRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.SearchPatchesResponse:
        """Patches that fire a feature, or that look to the model like part of a picture."""
        for field in ("filter", "collapse_near_duplicates"):
            if getattr(request, field) not in (False, pb.PatchFilter()):
                raise NotServedError(f"{field} is not served by this version", field=field)
        kind = request.WhichOneof("query")
        if kind == "feature":
            return await self._by_feature(request)
        if kind == "region":
            return await self._by_region(request)
        raise NotServedError(
            f"patches cannot be searched by {kind} in this version; use feature or region",
            field=kind or "query",
        )

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

        def find() -> pb.SearchPatchesResponse:
            rows, values = served.bundle.postings.row(index)
            hits, following = page(
                range(len(rows)), request.page_size, request.page_token, _DEFAULT_PAGE
            )
            response = pb.SearchPatchesResponse(
                next_page_token=following, recall_at_10=1.0, dictionary=served.resource
            )
            for i in hits:
                patch = self._patch(served, int(rows[i]), request, float(values[i]))
                patch.quantile = messages.quantile(served, index, float(values[i]))
                response.hits.append(pb.PatchHit(patch=patch, score=float(values[i])))
            return response

        return await self._state.searching.run(find)

    async def _by_region(self, request: pb.SearchPatchesRequest) -> pb.SearchPatchesResponse:
        served = self._state.dictionary(request.dictionary)
        bundle = served.bundle
        picture = await self._state.picture(request.region.image.data, served.model)
        region = request.region.region if request.region.HasField("region") else None
        mask = region_mask(region, bundle.grid, picture.geometry)
        if not mask.any():
            raise InvalidInputError("the region selects no patch", field="region.region")
        vectors = await served.model.lane.run(
            lambda: site_vectors(served.model.model, bundle.site, picture.pixels).numpy()
        )
        # The mean of unit vectors: every patch of the region counts the same.
        query = normalised(vectors[mask], bundle.site_mean).mean(axis=0, keepdims=True)
        return await self._state.searching.run(lambda: self._nearest(served, query, request))

    def _nearest(
        self, served: Served, query: NDArray[np.float32], request: pb.SearchPatchesRequest
    ) -> pb.SearchPatchesResponse:
        report = served.bundle.manifest["patch_index"]
        unit = normalised(query)
        depth = min(_DEEPEST, int(report["rows"]))
        cosines, rows = search(served.bundle.patch_index, unit, depth, int(report["nprobe"]))
        found = [(int(r), float(c)) for r, c in zip(rows[0], cosines[0], strict=True) if r >= 0]
        hits, following = page(found, request.page_size, request.page_token, _DEFAULT_PAGE)
        return pb.SearchPatchesResponse(
            hits=[
                pb.PatchHit(patch=self._patch(served, row, request), score=cosine)
                for row, cosine in hits
            ],
            next_page_token=following,
            recall_at_10=float(report["recall_at_10"]),
            dictionary=served.resource,
            space=pb.SEARCH_SPACE_VECTOR,
        )

    @staticmethod
    def _patch(
        served: Served, patch: int, request: pb.SearchPatchesRequest, activation: float = 0.0
    ) -> exemplar_pb2.Exemplar:
        options = exemplar_pb2.ExemplarOptions(
            thumbnail_pixels=request.thumbnail_pixels, omit_thumbnails=request.omit_thumbnails
        )
        return messages.indexed_patch(
            served, patch, thumbnail=messages.thumbnail_side(options), activation=activation
        )

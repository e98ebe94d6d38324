"""AttributionService: which features fire in a picture, and what they contribute to a target."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

import grpc
import numpy as np
import torch
from numpy.typing import NDArray

from vision_sae.models.artifacts import artifacts
from vision_sae.models.noised import NoisedPictures, Noising
from vision_sae.v1 import attribution_service_pb2 as pb
from vision_sae.v1 import attribution_service_pb2_grpc
from vision_sae_server.encodings import Encoded, encode_response, explained
from vision_sae_server.interceptor import validate
from vision_sae_server.lanes import Batches
from vision_sae_server.ledgers import Attributing
from vision_sae_server.regions import region_mask
from vision_sae_server.served import Served
from vision_sae_server.state import Picture, State
from vision_sae_server.streams import in_order, item_error
from vision_sae_server.unread import unread_texts
from vision_sae_server.vectors import site_vectors


def _noising(asked: pb.Noising) -> Noising:
    strength = asked.strength if asked.HasField("strength") else Noising.strength
    return Noising(strength, asked.prompt, asked.seed)


class _Asked(NamedTuple):
    """One picture to encode."""

    served: Served
    picture: Picture
    request: pb.EncodeRequest
    noising: Noising | None
    mask: NDArray[np.bool_]
    """The patches (P) that are asked about."""


def _encode(asked: Sequence[_Asked]) -> list[Encoded]:
    """The codes of pictures that ask the same of one dictionary, in one forward pass."""
    served, noising = asked[0].served, asked[0].noising
    model, dictionary = served.model.model, served.bundle.dictionary
    if noising is not None and isinstance(model, NoisedPictures):
        model = model.noised(noising)
    every = site_vectors(model, served.bundle.site, torch.stack([a.picture.pixels for a in asked]))
    found = []
    for vectors in every:
        codes = dictionary.encode(vectors)
        share = explained(served, vectors, dictionary.decode(codes))
        found.append(Encoded(codes, share, artifacts(vectors).numpy()))
    return found


def _response(asked: _Asked, encoded: Encoded) -> pb.EncodeResponse:
    served, picture, request, noising, mask = asked
    answer = encode_response(served, picture, request, encoded, mask, served.bundle.grid)
    model = served.model.model
    if noising is not None and isinstance(model, NoisedPictures):
        prompt = [("noising.prompt", noising.prompt)]
        answer.unread_texts.extend(unread_texts(model.generator.unread_text, prompt))
    return answer


class AttributionServicer(attribution_service_pb2_grpc.AttributionServiceServicer):
    """See ``attribution_service.proto``."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._batches = {
            name: Batches(model.lane, _encode, model.at_once, state.searching, _response)
            for name, model in state.models.items()
        }

    async def Encode(
        self, request: pb.EncodeRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.EncodeResponse:
        """The features that fire in a picture, and where."""
        served = self._state.dictionary(request.dictionary)
        picture = await self._state.picture(request.image.data, served.model)
        mask = region_mask(
            request.region if request.HasField("region") else None,
            served.bundle.grid,
            picture.geometry,
        )
        noising = _noising(request.noising) if request.HasField("noising") else None
        return await self._batches[served.model.resource].run(
            (served.resource, noising, picture.pixels.shape),
            _Asked(served, picture, request, noising, mask),
        )

    async def Attribute(
        self, request: pb.AttributeRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.AttributeResponse:
        """What the features of a picture contribute to a target, with books that add up."""
        return await Attributing(self._state, request).response()

    async def StreamAttribute(
        self,
        requests: AsyncIterator[pb.StreamAttributeRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[pb.StreamAttributeResponse]:
        """Attribute for many pictures, answers in the order of the items."""

        async def answer(item: pb.StreamAttributeRequest) -> pb.StreamAttributeResponse:
            try:
                validate(item.request)
                response = await Attributing(self._state, item.request).response()
            except Exception as error:  # every failure belongs to its item
                return pb.StreamAttributeResponse(id=item.id, error=item_error(error))
            return pb.StreamAttributeResponse(id=item.id, response=response)

        async for response in in_order(requests, answer, self._state.config.max_stream_items):
            yield response

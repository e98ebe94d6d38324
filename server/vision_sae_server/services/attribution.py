"""AttributionService: which features fire in a picture, and what they contribute to a target."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import grpc
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vision_sae.dictionaries.protocol import Codes
from vision_sae.dictionaries.resident import resident
from vision_sae.models.artifacts import artifacts
from vision_sae.models.noised import NoisedPictures, Noising
from vision_sae.models.vectors import site_vectors
from vision_sae.transfers import to_host
from vision_sae.v1 import attribution_service_pb2 as pb
from vision_sae.v1 import attribution_service_pb2_grpc
from vision_sae_server.answers.encodings import Encoded, encode_response
from vision_sae_server.answers.ledgers import AttributeCall
from vision_sae_server.requests.regions import region_mask
from vision_sae_server.requests.unread import unread_texts
from vision_sae_server.runtime.interceptor import validate
from vision_sae_server.runtime.lanes import Batches
from vision_sae_server.runtime.streams import in_order, item_error
from vision_sae_server.served import Served
from vision_sae_server.state import PreparedPicture, State


def _noising(message: pb.Noising) -> Noising:
    strength = message.strength if message.HasField("strength") else Noising.strength
    return Noising(strength, message.prompt, message.seed)


class _EncodeItem(NamedTuple):
    """One picture to encode."""

    served: Served
    picture: PreparedPicture
    request: pb.EncodeRequest
    noising: Noising | None
    mask: NDArray[np.bool_]
    """The patches (P) that the request selects."""


def _encode(replica: int, items: Sequence[_EncodeItem]) -> list[Encoded]:
    """Encode pictures by one dictionary, with the same noising, in one forward pass of the replica
    of this number (`ServedModel.everywhere`).

    The pictures are copied to the model's device once, and the codes of all of them back once.
    """
    served, noising = items[0].served, items[0].noising
    model = served.model.everywhere[replica].model
    dictionary = resident(served.bundle.dictionary, model.device)
    if noising is not None and isinstance(model, NoisedPictures):
        model = model.noised(noising)
    batch = site_vectors(model, served.bundle.site, torch.stack([i.picture.pixels for i in items]))
    parts: list[Tensor] = []
    for vectors in batch:
        codes = dictionary.encode(vectors)
        share = served.bundle.explained_share(vectors, dictionary.decode(codes))
        parts += [*codes, share, artifacts(vectors)]
    host = to_host(*parts)
    return [
        Encoded(Codes(indices, values), float(share), mask.numpy())
        for indices, values, share, mask in zip(*[iter(host)] * 4, strict=True)
    ]


def _response(item: _EncodeItem, encoded: Encoded) -> pb.EncodeResponse:
    served, picture, request, noising, mask = item
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
            name: Batches(
                {each.lane: partial(_encode, i) for i, each in enumerate(model.everywhere)},
                model.at_once,
                state.searching,
                _response,
            )
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
            _EncodeItem(served, picture, request, noising, mask),
        )

    async def Attribute(
        self, request: pb.AttributeRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.AttributeResponse:
        """The features' contributions to a target, with a ledger whose sums check."""
        return await AttributeCall(self._state, request).response()

    async def StreamAttribute(
        self,
        requests: AsyncIterator[pb.StreamAttributeRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[pb.StreamAttributeResponse]:
        """Attribute for many pictures; answers come in the order of the items."""

        async def answer(item: pb.StreamAttributeRequest) -> pb.StreamAttributeResponse:
            try:
                validate(item.request)
                response = await AttributeCall(self._state, item.request).response()
            except Exception as error:  # a failure is the answer to its item
                return pb.StreamAttributeResponse(id=item.id, error=item_error(error))
            return pb.StreamAttributeResponse(id=item.id, response=response)

        async for response in in_order(requests, answer, self._state.config.max_stream_items):
            yield response

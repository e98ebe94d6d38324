"""The asyncio client, of which ``client/generate.py`` makes the blocking one: edit this file."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar, Unpack

import grpc
from google.protobuf.message import Message

from vision_sae.v1.attribution_service_pb2 import (
    ENCODE_ORDER_UNSPECIFIED,
    AttributeResponse,
    EncodeOrder,
    EncodeResponse,
    Noising,
    StreamAttributeResponse,
)
from vision_sae.v1.catalog_service_pb2 import (
    GetServerInfoResponse,
    ListDictionariesResponse,
    ListFeaturesResponse,
    ListModelsResponse,
)
from vision_sae.v1.description_pb2 import Description, ScoreMetric, ScoreNegatives
from vision_sae.v1.description_service_pb2 import ScoreDescriptionResponse
from vision_sae.v1.dictionary_pb2 import Dictionary
from vision_sae.v1.edit_pb2 import Edit
from vision_sae.v1.exemplar_pb2 import ExemplarOptions
from vision_sae.v1.feature_pb2 import Feature
from vision_sae.v1.generation_service_pb2 import (
    GenerateResponse,
    GenerationSettings,
    Recipe,
)
from vision_sae.v1.image_pb2 import (
    HEATMAP_FORMAT_UNSPECIFIED,
    IMAGE_FORMAT_UNSPECIFIED,
    HeatmapFormat,
    ImageFormat,
    Region,
)
from vision_sae.v1.intervention_service_pb2 import InterveneResponse
from vision_sae.v1.label_job_service_pb2 import (
    LabelJob,
    ListLabelJobsResponse,
    WatchLabelJobResponse,
)
from vision_sae.v1.ledger_pb2 import (
    ATTRIBUTION_METHOD_UNSPECIFIED,
    AttributionMethod,
    ReferenceCode,
)
from vision_sae.v1.model_pb2 import MODEL_KIND_TEXT_TO_IMAGE, Model
from vision_sae.v1.search_service_pb2 import (
    FEATURE_MATCH_UNSPECIFIED,
    SEARCH_SPACE_UNSPECIFIED,
    EditedCodeQuery,
    ExamplesQuery,
    FeatureMatch,
    PatchFilter,
    SearchFeaturesResponse,
    SearchPatchesResponse,
    SearchSpace,
)
from vision_sae.v1.target_pb2 import Target
from vision_sae_client import requests, values
from vision_sae_client.channel import call_metadata, open_async_channel
from vision_sae_client.errors import first_dictionary, from_rpc_error
from vision_sae_client.images import BoxLike, ImageSource
from vision_sae_client.requests import AttributeOptions, Call, Conversation

PICTURES_OF_A_CALL = 64
"""Pictures of an intervention that one deadline is for."""
R = TypeVar("R", bound=Message)
Page = TypeVar(
    "Page",
    ListModelsResponse,
    ListDictionariesResponse,
    ListFeaturesResponse,
    ListLabelJobsResponse,
)


class AsyncClient:
    """Asks a vision_sae server; to be made inside a running event loop.

    Every call raises `ClientError` when the server refuses or cannot be reached. A ``dictionary``
    of None means the first that the server has.

    Example:
        >>> async with AsyncClient("127.0.0.1:50051") as client:  # doctest: +SKIP
        ...     answer = await client.encode("cat.jpg", top_k=3)
    """

    def __init__(
        self,
        address: str,
        *,
        token: str | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        timeout: float = 60.0,
    ) -> None:
        """Open a channel to ``address``, ``HOST:PORT``; ``timeout`` is the deadline of each call in
        seconds, ``inf`` is none.

        Without ``credentials`` the connection is not encrypted. Raises `InvalidInputError` for an
        address, a token or a timeout that cannot be one.
        """
        self._address = values.address(address)
        self._timeout = values.deadline(timeout)
        self._metadata = call_metadata(token)
        self._channel = open_async_channel(address, credentials)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the channel; calls under way are cancelled."""
        await self._channel.close()

    async def server_info(self) -> GetServerInfoResponse:
        """Versions, limits and capabilities of the server."""
        return await self._run(requests.server_info())

    async def models(self) -> list[Model]:
        """All models."""
        return [model async for page in self._pages(requests.list_models) for model in page.models]

    async def model(self, name: str) -> Model:
        """One model, ``models/{model}``, with the names of its classes."""
        answer = await self._run(requests.get_model(name))
        return answer.model

    async def generator(self) -> str | None:
        """The first text-to-image model, ``models/{model}``; None when the server has none."""
        kinds = {model.name: model.kind for model in await self.models()}
        return next(
            (name for name, kind in kinds.items() if kind == MODEL_KIND_TEXT_TO_IMAGE), None
        )

    async def dictionaries(self, *, filter: str = "") -> list[Dictionary]:
        """All dictionaries, by name, filtered as ``CatalogService.ListDictionaries`` says."""
        pages = self._pages(lambda token: requests.list_dictionaries(token, filter=filter))
        return [dictionary async for page in pages for dictionary in page.dictionaries]

    async def dictionary(self, name: str | None = None) -> Dictionary:
        """One dictionary, ``dictionaries/{dictionary}``."""
        if name is None:
            return first_dictionary(await self._run(requests.list_dictionaries()), self._address)
        answer = await self._run(requests.get_dictionary(name))
        return answer.dictionary

    async def features(
        self,
        dictionary: str | None = None,
        *,
        filter: str = "",
        order_by: str = "",
        full: bool = False,
        exemplars: ExemplarOptions | None = None,
        page_size: int = 100,
    ) -> AsyncIterator[Feature]:
        """The features of a dictionary, filtered and ordered; pages are fetched as they are used.

        ``filter`` and ``order_by`` follow ``CatalogService.ListFeatures``:
        ``firing_rate < 0.1 AND text:"striped"``, ``max desc``.
        """
        name = await self._name(dictionary)
        async for page in self._pages(
            lambda token: requests.list_features(
                name,
                filter=filter,
                order_by=order_by,
                full=full,
                exemplars=exemplars,
                page_size=page_size,
                page_token=token,
            )
        ):
            for feature in page.features:
                yield feature

    async def feature(
        self, name: str, *, full: bool = True, exemplars: ExemplarOptions | None = None
    ) -> Feature:
        """One feature, ``dictionaries/{dictionary}/features/{index}``."""
        answer = await self._run(requests.get_feature(name, full=full, exemplars=exemplars))
        return answer.feature

    async def encode(
        self,
        image: ImageSource,
        dictionary: str | None = None,
        *,
        top_k: int = 10,
        box: BoxLike | Region | None = None,
        order: EncodeOrder.ValueType = ENCODE_ORDER_UNSPECIFIED,
        full: bool = False,
        exemplars: ExemplarOptions | None = None,
        max_patches: int | None = None,
        include_codes: bool = False,
        min_activation: float = 0.0,
        heatmap_format: HeatmapFormat.ValueType = HEATMAP_FORMAT_UNSPECIFIED,
        noising: Noising | None = None,
    ) -> EncodeResponse:
        """The features that fire in a picture, or in a ``box`` or mask of it, and where.

        By default the most strongly active ones come first. ``ENCODE_ORDER_INFORMATIVE`` puts those
        first that say most about the picture, which is what a person should see. ``noising`` is how
        the picture enters a generator.
        """
        return await self._run(
            requests.encode(
                image,
                await self._name(dictionary),
                top_k=top_k,
                box=box,
                order=order,
                full=full,
                exemplars=exemplars,
                max_patches=max_patches,
                include_codes=include_codes,
                min_activation=min_activation,
                heatmap_format=heatmap_format,
                noising=noising,
            )
        )

    async def attribute(
        self,
        image: ImageSource,
        target: Target | None = None,
        *,
        dictionaries: Sequence[str] | None = None,
        method: AttributionMethod.ValueType = ATTRIBUTION_METHOD_UNSPECIFIED,
        baseline: ImageSource | ReferenceCode.ValueType | None = None,
        top_k: int = 10,
        full: bool = False,
        exemplars: ExemplarOptions | None = None,
        max_patches: int | None = None,
        faithfulness: bool = False,
        special_tokens: bool = False,
        nodes: int = 0,
        heatmap_format: HeatmapFormat.ValueType = HEATMAP_FORMAT_UNSPECIFIED,
        context_images: Sequence[ImageSource] = (),
        components: int = 0,
    ) -> AttributeResponse:
        """What the features of a picture contribute to a target (see `vision_sae_client.targets`).

        Without a target: to the similarity with the mean embedding. ``baseline`` is what it is
        measured from, a code or another picture. ``special_tokens`` attributes to the codes of
        special tokens (CLS, registers) too, which are otherwise held as they are.
        """
        return await self._run(
            requests.attribute(
                image,
                dictionaries or [await self._name(None)],
                target=target,
                method=method,
                baseline=baseline,
                top_k=top_k,
                full=full,
                exemplars=exemplars,
                max_patches=max_patches,
                faithfulness=faithfulness,
                special_tokens=special_tokens,
                nodes=nodes,
                heatmap_format=heatmap_format,
                context_images=context_images,
                components=components,
            )
        )

    async def stream_attribute(
        self,
        images: Sequence[ImageSource],
        target: Target | None = None,
        *,
        dictionaries: Sequence[str] | None = None,
        **options: Unpack[AttributeOptions],
    ) -> AsyncIterator[StreamAttributeResponse]:
        """`attribute` for any number of pictures: an answer for each, in their order.

        ``id`` is the number of the picture, from 0. One that is refused answers with its ``error``,
        and the others go on. The deadline is for each picture.
        """
        call = requests.stream_attribute(
            images, dictionaries or [await self._name(None)], target=target, **options
        )
        async for message in self._converse(call, len(images)):
            yield message

    async def intervene(
        self,
        images: Sequence[ImageSource],
        edits: Sequence[Edit],
        measured: Mapping[str, Target],
        *,
        groups: Sequence[str] = (),
        top_classes: int | None = None,
        control_count: int = 0,
        seed: int = 0,
        include_embeddings: bool = False,
    ) -> InterveneResponse:
        """What a model says of any number of pictures before and after edits (see
        `vision_sae_client.edits`).

        ``measured`` are targets by names of yours; effects are summed up for each of ``groups``,
        and the first group is compared with the others. The control applies the edits to random
        features, ``control_count`` times. The deadline is for each `PICTURES_OF_A_CALL` pictures.
        """
        call = requests.intervene(
            images,
            edits,
            measured,
            groups=groups,
            top_classes=top_classes,
            control_count=control_count,
            seed=seed,
            include_embeddings=include_embeddings,
        )
        answer = InterveneResponse()
        async for message in self._converse(call, -(-len(images) // PICTURES_OF_A_CALL)):
            if message.HasField("image"):
                answer.images.append(message.image)
            else:
                answer.summary.CopyFrom(message.summary)
        return answer

    async def search_patches(
        self,
        *,
        text: str | None = None,
        feature: str | None = None,
        image: ImageSource | None = None,
        box: BoxLike | Region | None = None,
        dictionary: str | None = None,
        count: int = 20,
        page_token: str = "",
        edited_code: EditedCodeQuery | None = None,
        examples: ExamplesQuery | None = None,
        space: SearchSpace.ValueType = SEARCH_SPACE_UNSPECIFIED,
        filter: PatchFilter | None = None,
        collapse_near_duplicates: bool = False,
        thumbnail_pixels: int = 0,
        omit_thumbnails: bool = False,
    ) -> SearchPatchesResponse:
        """The patches that show most what a text says, that fire a feature most, or that are most
        like (a box or mask of) a picture, an edited code, or examples."""
        return await self._run(
            requests.search_patches(
                text=text,
                feature=feature,
                source=image,
                box=box,
                dictionary=await self._name(dictionary) if feature is None else dictionary or "",
                count=count,
                page_token=page_token,
                edited_code=edited_code,
                examples=examples,
                space=space,
                filter=filter,
                collapse_near_duplicates=collapse_near_duplicates,
                thumbnail_pixels=thumbnail_pixels,
                omit_thumbnails=omit_thumbnails,
            )
        )

    async def search_features(
        self,
        *,
        text: str | None = None,
        feature: str | None = None,
        image: ImageSource | None = None,
        box: BoxLike | Region | None = None,
        dictionaries: Sequence[str] = (),
        match: FeatureMatch.ValueType = FEATURE_MATCH_UNSPECIFIED,
        filter: str = "",
        full: bool = False,
        exemplars: ExemplarOptions | None = None,
        count: int = 20,
        page_token: str = "",
    ) -> SearchFeaturesResponse:
        """The features about a text, like a feature, or typical of (a box of) a picture.

        They are of ``dictionaries``; without, of all that can be searched.
        """
        return await self._run(
            requests.search_features(
                text=text,
                feature=feature,
                source=image,
                box=box,
                dictionaries=dictionaries,
                match=match,
                filter=filter,
                full=full,
                exemplars=exemplars,
                count=count,
                page_token=page_token,
            )
        )

    async def describe_feature(
        self,
        name: str,
        *,
        describer: str = "",
        force: bool = False,
        metrics: Sequence[ScoreMetric.ValueType] = (),
        full: bool = False,
        exemplars: ExemplarOptions | None = None,
        request_id: str = "",
    ) -> Description:
        """The description of a feature; made now where there is none, or with ``force``."""
        call = requests.describe_feature(
            name,
            describer=describer,
            force=force,
            metrics=metrics,
            full=full,
            exemplars=exemplars,
            request_id=request_id,
        )
        answer = await self._run(call)
        return answer.description

    async def score_description(
        self,
        name: str,
        text: str,
        *,
        metrics: Sequence[ScoreMetric.ValueType] = (),
        negatives: Sequence[ScoreNegatives.ValueType] = (),
        sample_size: int = 0,
        seed: int = 0,
    ) -> ScoreDescriptionResponse:
        """How well any text describes a feature; nothing is stored."""
        call = requests.score_description(
            name,
            text,
            metrics=metrics,
            negatives=negatives,
            sample_size=sample_size,
            seed=seed,
        )
        return await self._run(call)

    async def update_description(
        self,
        name: str,
        text: str | None,
        *,
        reason: str = "",
        etag: str = "",
        request_id: str = "",
    ) -> Description:
        """Write the text of a feature; None, with a ``reason``, says that there is none.

        With the ``etag`` of the description that was seen, the call is refused (ABORTED) when
        somebody else wrote in between.
        """
        call = requests.update_description(
            name, text, reason=reason, etag=etag, request_id=request_id
        )
        answer = await self._run(call)
        return answer.description

    async def create_label_job(
        self, job: LabelJob, *, name: str = "", request_id: str = ""
    ) -> LabelJob:
        """Put a job in the queue, made by `vision_sae_client.jobs.label_job`; it gets a name."""
        call = requests.create_label_job(job, name=name, request_id=request_id)
        answer = await self._run(call)
        return answer.label_job

    async def label_job(self, name: str) -> LabelJob:
        """One label job, ``labelJobs/{label_job}``."""
        answer = await self._run(requests.get_label_job(name))
        return answer.label_job

    async def label_jobs(self, *, filter: str = "") -> list[LabelJob]:
        """Label jobs, newest first, filtered as ``LabelJobService.ListLabelJobs`` says."""
        pages = self._pages(lambda token: requests.list_label_jobs(filter=filter, page_token=token))
        return [job async for page in pages for job in page.label_jobs]

    async def cancel_label_job(self, name: str) -> LabelJob:
        """Stop a label job; labels made so far stay."""
        answer = await self._run(requests.cancel_label_job(name))
        return answer.label_job

    async def watch_label_job(
        self, name: str, *, resume_token: str = "", progress_only: bool = False
    ) -> AsyncIterator[WatchLabelJobResponse]:
        """Follow a label job until it has ended: finished units, and its progress.

        There is no deadline. The ``resume_token`` of any message goes on after that message.
        """
        call = requests.watch_label_job(
            name, resume_token=resume_token, progress_only=progress_only
        )
        async for message in self._stream(call, timeout=None):
            yield message

    async def generate(
        self,
        content: GenerationSettings | Recipe,
        *,
        allow_drift: bool = False,
        omit_twin: bool = False,
        preview_interval: int = 0,
        preview_pixels: int = 0,
        format: ImageFormat.ValueType = IMAGE_FORMAT_UNSPECIFIED,
        effect_texts: Sequence[str] = (),
        encode_dictionaries: Sequence[str] = (),
        request_id: str = "",
    ) -> AsyncIterator[GenerateResponse]:
        """A steered picture and its twin: progress step by step, and the result at last.

        ``content`` says what to generate, with edits made by `vision_sae_client.edits.edit`, or is
        a recipe to repeat. Whoever stops reading cancels the work.
        """
        call = requests.generate(
            content,
            allow_drift=allow_drift,
            omit_twin=omit_twin,
            preview_interval=preview_interval,
            preview_pixels=preview_pixels,
            format=format,
            effect_texts=effect_texts,
            encode_dictionaries=encode_dictionaries,
            request_id=request_id,
        )
        async for message in self._stream(call, timeout=self._timeout):
            yield message

    def _stream(self, call: Call[R], *, timeout: float | None) -> AsyncIterator[R]:
        send = self._channel.unary_stream(
            call.method,
            request_serializer=type(call.request).SerializeToString,
            response_deserializer=call.response.FromString,
        )
        answers = send(call.request, timeout=timeout, metadata=self._metadata)
        return self._read(answers, self._timeout)

    def _converse(self, call: Conversation[R], deadlines: int) -> AsyncIterator[R]:
        """Send all messages; the answers, within so many deadlines of a call."""
        send = self._channel.stream_stream(
            call.method,
            request_serializer=type(call.requests[0]).SerializeToString,
            response_deserializer=call.response.FromString,
        )
        timeout = None if self._timeout is None else max(1, deadlines) * self._timeout
        answers = send(iter(call.requests), timeout=timeout, metadata=self._metadata)
        return self._read(answers, timeout)

    async def _read(self, answers: Any, timeout: float | None) -> AsyncIterator[Any]:
        """The messages of a stream; whoever stops reading cancels it."""
        try:
            async for message in answers:
                yield message
        except grpc.RpcError as error:
            raise from_rpc_error(error, address=self._address, timeout=timeout) from error
        finally:
            answers.cancel()

    async def _name(self, dictionary: str | None) -> str:
        if dictionary:
            return dictionary
        first = await self.dictionary()
        return first.name

    async def _pages(self, build: Callable[[str], Call[Page]]) -> AsyncIterator[Page]:
        token = ""
        while True:
            page = await self._run(build(token))
            yield page
            token = page.next_page_token
            if not token:
                return

    async def _run(self, call: Call[R]) -> R:
        send = self._channel.unary_unary(
            call.method,
            request_serializer=type(call.request).SerializeToString,
            response_deserializer=call.response.FromString,
        )
        try:
            return await send(call.request, timeout=self._timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            raise from_rpc_error(error, address=self._address, timeout=self._timeout) from error

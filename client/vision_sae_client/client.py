"""The blocking client, generated from ``aio.py`` by ``client/generate.py``: edit ``aio.py``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, TypeVar, Unpack

import grpc

from vision_sae.v1.attribution_service_pb2 import (
    ENCODE_ORDER_UNSPECIFIED,
    AttributeResponse,
    EncodeOrder,
    EncodeResponse,
    Noising,
    StreamAttributeResponse,
)
from vision_sae.v1.attribution_service_pb2_grpc import AttributionServiceStub
from vision_sae.v1.catalog_service_pb2 import (
    GetServerInfoRequest,
    GetServerInfoResponse,
    ListModelsRequest,
)
from vision_sae.v1.catalog_service_pb2_grpc import CatalogServiceStub
from vision_sae.v1.description_pb2 import Description, ScoreMetric, ScoreNegatives
from vision_sae.v1.description_service_pb2 import ScoreDescriptionResponse
from vision_sae.v1.description_service_pb2_grpc import DescriptionServiceStub
from vision_sae.v1.dictionary_pb2 import Dictionary
from vision_sae.v1.edit_pb2 import Edit
from vision_sae.v1.exemplar_pb2 import ExemplarOptions
from vision_sae.v1.feature_pb2 import Feature
from vision_sae.v1.generation_service_pb2 import GenerateResponse, GenerationSettings, Recipe
from vision_sae.v1.generation_service_pb2_grpc import GenerationServiceStub
from vision_sae.v1.image_pb2 import (
    HEATMAP_FORMAT_UNSPECIFIED,
    IMAGE_FORMAT_UNSPECIFIED,
    HeatmapFormat,
    ImageFormat,
    Region,
)
from vision_sae.v1.intervention_service_pb2 import InterveneResponse
from vision_sae.v1.intervention_service_pb2_grpc import InterventionServiceStub
from vision_sae.v1.label_job_service_pb2 import LabelJob, WatchLabelJobResponse
from vision_sae.v1.label_job_service_pb2_grpc import LabelJobServiceStub
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
from vision_sae.v1.search_service_pb2_grpc import SearchServiceStub
from vision_sae.v1.target_pb2 import Target
from vision_sae_client import values
from vision_sae_client.channel import call_metadata, open_channel
from vision_sae_client.errors import first_dictionary, from_rpc_error
from vision_sae_client.images import BoxLike, ImageSource
from vision_sae_client.requests import (
    attribution,
    catalog,
    description,
    generation,
    intervention,
    label_jobs,
    search,
)
from vision_sae_client.requests.attribution import AttributeOptions

PICTURES_PER_DEADLINE = 64
"""Number of pictures of an intervention that share one deadline."""
Request = TypeVar("Request")
Response = TypeVar("Response")


class PageRequest(Protocol):
    """A request for one page of a listing."""

    page_token: str


class Page(Protocol):
    """One page of a listing."""

    next_page_token: str


PageRequestT = TypeVar("PageRequestT", bound=PageRequest)
PageT = TypeVar("PageT", bound=Page)


class Client:
    """A client of a vision_sae server; threads may share it.

    Every call raises `ClientError` when the server refuses it or cannot be reached. A
    ``dictionary`` of None means the server's first dictionary.

    Example:
        >>> with Client("127.0.0.1:50051") as client:  # doctest: +SKIP
        ...     answer = client.encode("cat.jpg", top_k=3)
    """

    def __init__(
        self,
        address: str,
        *,
        token: str | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        timeout: float = 60.0,
    ) -> None:
        """Open a channel to ``address``, ``HOST:PORT``. ``timeout`` is the deadline of each call in
        seconds; ``inf`` means no deadline.

        Without ``credentials`` the connection is not encrypted. Raises `InvalidInputError` for an
        invalid address, token or timeout.
        """
        self._address = values.address(address)
        self._timeout = values.deadline(timeout)
        self._metadata = call_metadata(token)
        self._channel = open_channel(address, credentials)
        self._catalog = CatalogServiceStub(self._channel)
        self._attribution = AttributionServiceStub(self._channel)
        self._intervention = InterventionServiceStub(self._channel)
        self._search = SearchServiceStub(self._channel)
        self._description = DescriptionServiceStub(self._channel)
        self._generation = GenerationServiceStub(self._channel)
        self._label_jobs = LabelJobServiceStub(self._channel)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the channel; running calls are cancelled."""
        self._channel.close()

    def server_info(self) -> GetServerInfoResponse:
        """Versions, limits and capabilities of the server."""
        return self._ask(self._catalog.GetServerInfo, GetServerInfoRequest())

    def models(self) -> list[Model]:
        """All models."""
        pages = self._pages(self._catalog.ListModels, ListModelsRequest())
        return [model for page in pages for model in page.models]

    def model(self, name: str) -> Model:
        """One model, ``models/{model}``, with the names of its classes."""
        answer = self._ask(self._catalog.GetModel, catalog.get_model(name))
        return answer.model

    def generator(self) -> str | None:
        """The name ``models/{model}`` of the first text-to-image model; None without one."""
        kinds = {model.name: model.kind for model in self.models()}
        return next(
            (name for name, kind in kinds.items() if kind == MODEL_KIND_TEXT_TO_IMAGE), None
        )

    def dictionaries(self, *, filter: str = "") -> list[Dictionary]:
        """All dictionaries, sorted by name; ``filter`` follows
        ``CatalogService.ListDictionaries``."""
        pages = self._pages(
            self._catalog.ListDictionaries, catalog.list_dictionaries(filter=filter)
        )
        return [dictionary for page in pages for dictionary in page.dictionaries]

    def dictionary(self, name: str | None = None) -> Dictionary:
        """One dictionary, ``dictionaries/{dictionary}``; by default the server's first."""
        if name is None:
            page = self._ask(self._catalog.ListDictionaries, catalog.list_dictionaries())
            return first_dictionary(page, self._address)
        answer = self._ask(self._catalog.GetDictionary, catalog.get_dictionary(name))
        return answer.dictionary

    def features(
        self,
        dictionary: str | None = None,
        *,
        filter: str = "",
        order_by: str = "",
        full: bool = False,
        exemplars: ExemplarOptions | None = None,
        page_size: int = 100,
    ) -> Iterator[Feature]:
        """The features of a dictionary, filtered and ordered. Pages are fetched as they are needed.

        ``filter`` and ``order_by`` follow ``CatalogService.ListFeatures``:
        ``firing_rate < 0.1 AND text:"striped"``, ``max desc``.
        """
        request = catalog.list_features(
            self._name(dictionary),
            filter=filter,
            order_by=order_by,
            full=full,
            exemplars=exemplars,
            page_size=page_size,
        )
        for page in self._pages(self._catalog.ListFeatures, request):
            yield from page.features

    def feature(
        self, name: str, *, full: bool = True, exemplars: ExemplarOptions | None = None
    ) -> Feature:
        """One feature, ``dictionaries/{dictionary}/features/{index}``."""
        request = catalog.get_feature(name, full=full, exemplars=exemplars)
        answer = self._ask(self._catalog.GetFeature, request)
        return answer.feature

    def encode(
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

        By default the most active features come first. With ``ENCODE_ORDER_INFORMATIVE`` the
        features that say most about the picture come first, which is the best order for people.
        ``noising`` sets how a picture is noised for a generator.
        """
        request = attribution.encode(
            image,
            self._name(dictionary),
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
        return self._ask(self._attribution.Encode, request)

    def attribute(
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
        """The contributions of a picture's features to a target (see `vision_sae_client.targets`).

        The default target is the similarity to the mean embedding. Contributions are measured from
        the ``baseline``, a code or another picture. With ``special_tokens`` the codes of special
        tokens (CLS, registers) get contributions, too; otherwise they are held constant.
        """
        request = attribution.attribute(
            image,
            dictionaries or [self._name(None)],
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
        return self._ask(self._attribution.Attribute, request)

    def stream_attribute(
        self,
        images: Sequence[ImageSource],
        target: Target | None = None,
        *,
        dictionaries: Sequence[str] | None = None,
        **options: Unpack[AttributeOptions],
    ) -> Iterator[StreamAttributeResponse]:
        """`attribute` for any number of pictures, with answers in the order of the pictures.

        The ``id`` of an answer is the number of its picture, from 0. A refused picture has an
        ``error`` for an answer, and the stream continues. There is a deadline for every picture.
        """
        requests = attribution.stream_attribute(
            images, dictionaries or [self._name(None)], target=target, **options
        )
        yield from self._converse(self._attribution.StreamAttribute, requests, len(images))

    def intervene(
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
        """A model's output for any number of pictures before and after edits (see
        `vision_sae_client.edits`).

        ``measured`` maps names of your choice to targets. Effects are summarised for each of
        ``groups``, and the first group is compared with the others. The control applies the edits
        to random features, ``control_count`` times. There is a deadline for every
        `PICTURES_PER_DEADLINE` pictures.
        """
        requests = intervention.intervene(
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
        deadlines = -(-len(images) // PICTURES_PER_DEADLINE)
        for message in self._converse(self._intervention.StreamIntervene, requests, deadlines):
            if message.HasField("image"):
                answer.images.append(message.image)
            else:
                answer.summary.CopyFrom(message.summary)
        return answer

    def search_patches(
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
        """The patches that best match a text, that fire a feature most, or that are most similar to
        (a box or mask of) a picture, an edited code, or examples."""
        request = search.search_patches(
            text=text,
            feature=feature,
            source=image,
            box=box,
            dictionary=self._name(dictionary) if feature is None else dictionary or "",
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
        return self._ask(self._search.SearchPatches, request)

    def search_features(
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
        """The features that match a text, resemble a feature, or fire in (a box of) a picture.

        Without ``dictionaries``, all dictionaries are searched.
        """
        request = search.search_features(
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
        return self._ask(self._search.SearchFeatures, request)

    def describe_feature(
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
        """The description of a feature. A feature without one, or ``force``, gets a new
        description."""
        request = description.describe_feature(
            name,
            describer=describer,
            force=force,
            metrics=metrics,
            full=full,
            exemplars=exemplars,
            request_id=request_id,
        )
        answer = self._ask(self._description.DescribeFeature, request)
        return answer.description

    def score_description(
        self,
        name: str,
        text: str,
        *,
        metrics: Sequence[ScoreMetric.ValueType] = (),
        negatives: Sequence[ScoreNegatives.ValueType] = (),
        sample_size: int = 0,
        seed: int = 0,
    ) -> ScoreDescriptionResponse:
        """Measure how well any text describes a feature; nothing is stored."""
        request = description.score_description(
            name,
            text,
            metrics=metrics,
            negatives=negatives,
            sample_size=sample_size,
            seed=seed,
        )
        return self._ask(self._description.ScoreDescription, request)

    def update_description(
        self,
        name: str,
        text: str | None,
        *,
        reason: str = "",
        etag: str = "",
        request_id: str = "",
    ) -> Description:
        """Write the description of a feature; a ``text`` of None, with a ``reason``, abstains.

        With the ``etag`` of the description that you read, the call is refused (ABORTED) when
        somebody else has written since.
        """
        request = description.update_description(
            name, text, reason=reason, etag=etag, request_id=request_id
        )
        answer = self._ask(self._description.UpdateDescription, request)
        return answer.description

    def create_label_job(self, job: LabelJob, *, name: str = "", request_id: str = "") -> LabelJob:
        """Queue a job from `vision_sae_client.jobs.label_job`; the returned job has a name."""
        request = label_jobs.create_label_job(job, name=name, request_id=request_id)
        answer = self._ask(self._label_jobs.CreateLabelJob, request)
        return answer.label_job

    def label_job(self, name: str) -> LabelJob:
        """One label job, ``labelJobs/{label_job}``."""
        answer = self._ask(self._label_jobs.GetLabelJob, label_jobs.get_label_job(name))
        return answer.label_job

    def label_jobs(self, *, filter: str = "") -> list[LabelJob]:
        """Label jobs, newest first; ``filter`` follows ``LabelJobService.ListLabelJobs``."""
        request = label_jobs.list_label_jobs(filter=filter)
        pages = self._pages(self._label_jobs.ListLabelJobs, request)
        return [job for page in pages for job in page.label_jobs]

    def cancel_label_job(self, name: str) -> LabelJob:
        """Stop a label job; the labels that it has written stay."""
        request = label_jobs.cancel_label_job(name)
        answer = self._ask(self._label_jobs.CancelLabelJob, request)
        return answer.label_job

    def watch_label_job(
        self, name: str, *, resume_token: str = "", progress_only: bool = False
    ) -> Iterator[WatchLabelJobResponse]:
        """Follow a label job until it ends: its finished units and its progress.

        There is no deadline. The ``resume_token`` of a message resumes after this message.
        """
        request = label_jobs.watch_label_job(
            name, resume_token=resume_token, progress_only=progress_only
        )
        yield from self._stream(self._label_jobs.WatchLabelJob, request, None)

    def generate(
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
    ) -> Iterator[GenerateResponse]:
        """Generate a steered picture and its twin: yields the progress of each step, then the
        result.

        ``content`` is either settings, with edits from `vision_sae_client.edits.edit`, or a recipe
        to repeat. The generation is cancelled when the caller stops reading.
        """
        request = generation.generate(
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
        yield from self._stream(self._generation.Generate, request, self._timeout)

    def _name(self, dictionary: str | None) -> str:
        if dictionary:
            return dictionary
        first = self.dictionary()
        return first.name

    def _ask(
        self, rpc: grpc.UnaryUnaryMultiCallable[Request, Response], request: Request
    ) -> Response:
        try:
            return rpc(request, timeout=self._timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            raise from_rpc_error(error, address=self._address, timeout=self._timeout) from error

    def _pages(
        self, rpc: grpc.UnaryUnaryMultiCallable[PageRequestT, PageT], request: PageRequestT
    ) -> Iterator[PageT]:
        """The pages of a listing; ``request`` asks for the first page."""
        while True:
            page = self._ask(rpc, request)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def _stream(
        self,
        rpc: grpc.UnaryStreamMultiCallable[Request, Response],
        request: Request,
        timeout: float | None,
    ) -> Iterator[Response]:
        """The answers to one request."""
        answers = rpc(request, timeout=timeout, metadata=self._metadata)
        return self._read(answers, timeout)

    def _converse(
        self,
        rpc: grpc.StreamStreamMultiCallable[Request, Response],
        requests: Sequence[Request],
        deadlines: int,
    ) -> Iterator[Response]:
        """The answers to all requests, within ``deadlines`` times the deadline of a call."""
        timeout = None if self._timeout is None else max(1, deadlines) * self._timeout
        answers = rpc(iter(requests), timeout=timeout, metadata=self._metadata)
        return self._read(answers, timeout)

    def _read(self, answers: Any, timeout: float | None) -> Iterator[Any]:
        """The messages of a stream; the call is cancelled when the reader stops."""
        try:
            yield from answers
        except grpc.RpcError as error:
            raise from_rpc_error(error, address=self._address, timeout=timeout) from error
        finally:
            answers.cancel()

"""Every request, built in one place for the sync and the async client."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, SupportsIndex, TypedDict, TypeVar, Unpack, cast

from google.protobuf.message import Message

from vision_sae.errors import InvalidInputError
from vision_sae.v1 import attribution_service_pb2 as attribution_pb
from vision_sae.v1 import catalog_service_pb2 as catalog_pb
from vision_sae.v1 import description_service_pb2 as description_pb
from vision_sae.v1 import generation_service_pb2 as generation_pb
from vision_sae.v1 import intervention_service_pb2 as intervention_pb
from vision_sae.v1 import label_job_service_pb2 as jobs_pb
from vision_sae.v1 import search_service_pb2 as search_pb
from vision_sae.v1.description_pb2 import Description, ScoreMetric, ScoreNegatives
from vision_sae.v1.edit_pb2 import Edit
from vision_sae.v1.exemplar_pb2 import ExemplarOptions
from vision_sae.v1.feature_pb2 import FEATURE_VIEW_BASIC, FEATURE_VIEW_FULL, FeatureView
from vision_sae.v1.generation_service_pb2 import GenerationSettings, Recipe
from vision_sae.v1.image_pb2 import (
    HEATMAP_FORMAT_UNSPECIFIED,
    IMAGE_FORMAT_UNSPECIFIED,
    Box,
    HeatmapFormat,
    ImageFormat,
    Region,
)
from vision_sae.v1.label_job_service_pb2 import LabelJob
from vision_sae.v1.ledger_pb2 import (
    ATTRIBUTION_METHOD_UNSPECIFIED,
    AttributionMethod,
    ReferenceCode,
)
from vision_sae.v1.search_service_pb2 import FEATURE_MATCH_UNSPECIFIED, FeatureMatch
from vision_sae.v1.target_pb2 import Target
from vision_sae_client import targets
from vision_sae_client.images import BoxLike, ImageSource, image
from vision_sae_client.values import sendable

R_co = TypeVar("R_co", bound=Message, covariant=True)


@dataclass(frozen=True)
class Call(Generic[R_co]):
    """One call, ready to be sent over any channel."""

    method: str
    """Full name of the rpc, ``/vision_sae.v1.CatalogService/GetFeature``."""
    request: Message
    response: type[R_co]


@dataclass(frozen=True)
class Conversation(Generic[R_co]):
    """Messages to be sent one after the other, each of which is answered."""

    method: str
    requests: Sequence[Message]
    """Of one type; at least one."""
    response: type[R_co]


def dictionary_name(name: str) -> str:
    """``dictionaries/{dictionary}``, from the whole name or its last part."""
    return name if name.startswith("dictionaries/") else f"dictionaries/{name}"


def model_name(name: str) -> str:
    """``models/{model}``, from the whole name or its last part."""
    return name if name.startswith("models/") else f"models/{name}"


def job_name(name: str) -> str:
    """``labelJobs/{label_job}``, from the whole name or its last part."""
    return name if name.startswith("labelJobs/") else f"labelJobs/{name}"


def server_info() -> Call[catalog_pb.GetServerInfoResponse]:
    """Versions, limits and capabilities."""
    return _catalog(
        "GetServerInfo", catalog_pb.GetServerInfoRequest(), catalog_pb.GetServerInfoResponse
    )


@sendable
def list_models(page_token: str = "") -> Call[catalog_pb.ListModelsResponse]:
    """A page of models."""
    request = catalog_pb.ListModelsRequest(page_token=page_token)
    return _catalog("ListModels", request, catalog_pb.ListModelsResponse)


@sendable
def get_model(name: str) -> Call[catalog_pb.GetModelResponse]:
    """One model, with the names of its classes."""
    request = catalog_pb.GetModelRequest(name=model_name(name))
    return _catalog("GetModel", request, catalog_pb.GetModelResponse)


@sendable
def list_dictionaries(
    page_token: str = "", *, filter: str = ""
) -> Call[catalog_pb.ListDictionariesResponse]:
    """A page of dictionaries."""
    request = catalog_pb.ListDictionariesRequest(page_token=page_token, filter=filter)
    return _catalog("ListDictionaries", request, catalog_pb.ListDictionariesResponse)


@sendable
def get_dictionary(name: str) -> Call[catalog_pb.GetDictionaryResponse]:
    """One dictionary."""
    request = catalog_pb.GetDictionaryRequest(name=dictionary_name(name))
    return _catalog("GetDictionary", request, catalog_pb.GetDictionaryResponse)


@sendable
def list_features(
    dictionary: str,
    *,
    filter: str = "",
    order_by: str = "",
    full: bool = False,
    exemplars: ExemplarOptions | None = None,
    page_size: int = 100,
    page_token: str = "",
) -> Call[catalog_pb.ListFeaturesResponse]:
    """A page of features."""
    request = catalog_pb.ListFeaturesRequest(
        parent=dictionary_name(dictionary),
        filter=filter,
        order_by=order_by,
        view=_view(full),
        exemplars=exemplars,
        page_size=page_size,
        page_token=page_token,
    )
    return _catalog("ListFeatures", request, catalog_pb.ListFeaturesResponse)


@sendable
def get_feature(
    name: str, *, full: bool = True, exemplars: ExemplarOptions | None = None
) -> Call[catalog_pb.GetFeatureResponse]:
    """One feature, with its exemplars when ``full``."""
    request = catalog_pb.GetFeatureRequest(name=name, view=_view(full), exemplars=exemplars)
    return _catalog("GetFeature", request, catalog_pb.GetFeatureResponse)


@sendable
def encode(
    source: ImageSource,
    dictionary: str,
    *,
    top_k: int = 10,
    box: BoxLike | Region | None = None,
    order: attribution_pb.EncodeOrder.ValueType = attribution_pb.ENCODE_ORDER_UNSPECIFIED,
    full: bool = False,
    exemplars: ExemplarOptions | None = None,
    max_patches: int | None = None,
    include_codes: bool = False,
    min_activation: float = 0.0,
    heatmap_format: HeatmapFormat.ValueType = HEATMAP_FORMAT_UNSPECIFIED,
    noising: attribution_pb.Noising | None = None,
) -> Call[attribution_pb.EncodeResponse]:
    """The features that fire in a picture."""
    request = attribution_pb.EncodeRequest(
        image=image(source),
        dictionary=dictionary_name(dictionary),
        top_k=top_k,
        region=_region(box),
        order=order,
        view=_view(full),
        exemplars=exemplars,
        max_patches=max_patches,
        include_codes=include_codes,
        min_activation=min_activation,
        heatmap_format=heatmap_format,
        noising=noising,
    )
    return _attribution("Encode", request, attribution_pb.EncodeResponse)


class AttributeOptions(TypedDict, total=False):
    """How an attribution is made; see `AttributeRequest`."""

    method: AttributionMethod.ValueType
    baseline: ImageSource | ReferenceCode.ValueType | None
    """What it is measured from: a code, or another picture."""
    top_k: int
    full: bool
    exemplars: ExemplarOptions | None
    max_patches: int | None
    faithfulness: bool
    special_tokens: bool
    nodes: int
    heatmap_format: HeatmapFormat.ValueType
    context_images: Sequence[ImageSource]
    components: int


@sendable
def attribute(
    source: ImageSource,
    dictionaries: Sequence[str],
    *,
    target: Target | None = None,
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
) -> Call[attribution_pb.AttributeResponse]:
    """What features contribute to a target; without one, to the mean embedding."""
    request = attribution_pb.AttributeRequest(
        image=image(source),
        dictionaries=[dictionary_name(name) for name in dictionaries],
        target=target or targets.mean_embedding(),
        method=method,
        baseline=_baseline(baseline),
        top_k=top_k,
        view=_view(full),
        exemplars=exemplars,
        max_patches=max_patches,
        faithfulness=faithfulness,
        special_tokens=special_tokens,
        nodes=nodes,
        heatmap_format=heatmap_format,
        context_images=[image(each) for each in context_images],
        components=components,
    )
    return _attribution("Attribute", request, attribution_pb.AttributeResponse)


def stream_attribute(
    sources: Sequence[ImageSource],
    dictionaries: Sequence[str],
    *,
    target: Target | None = None,
    **options: Unpack[AttributeOptions],
) -> Conversation[attribution_pb.StreamAttributeResponse]:
    """`attribute` for any number of pictures, which are numbered from 0."""
    ask = attribution_pb.StreamAttributeRequest
    calls = [attribute(source, dictionaries, target=target, **options) for source in sources]
    asked = [cast(attribution_pb.AttributeRequest, call.request) for call in calls]
    return Conversation(
        "/vision_sae.v1.AttributionService/StreamAttribute",
        [ask(id=str(number), request=request) for number, request in enumerate(asked)],
        attribution_pb.StreamAttributeResponse,
    )


def _baseline(
    source: ImageSource | ReferenceCode.ValueType | None,
) -> attribution_pb.AttributionBaseline | None:
    if source is None:
        return None
    if isinstance(source, SupportsIndex):
        reference = ReferenceCode.ValueType(operator.index(source))
        return attribution_pb.AttributionBaseline(reference=reference)
    return attribution_pb.AttributionBaseline(image=image(source))


@sendable
def intervene(
    sources: Sequence[ImageSource],
    edits: Sequence[Edit],
    measured: Mapping[str, Target],
    *,
    groups: Sequence[str] = (),
    top_classes: int | None = None,
    control_count: int = 0,
    seed: int = 0,
    include_embeddings: bool = False,
) -> Conversation[intervention_pb.StreamInterveneResponse]:
    """Pictures before and after edits; ``measured`` are targets by names of yours."""
    if groups and len(groups) != len(sources):
        raise InvalidInputError("give a group for each picture, or none", field="groups")
    plan = intervention_pb.InterventionPlan(
        edits=edits,
        targets=[
            intervention_pb.NamedTarget(id=name, target=target) for name, target in measured.items()
        ],
        top_classes=top_classes,
        control_count=control_count,
        seed=seed,
        include_embeddings=include_embeddings,
    )
    pictures = (
        intervention_pb.InterventionImage(
            id=str(number), image=image(source), group=groups[number] if groups else ""
        )
        for number, source in enumerate(sources)
    )
    ask = intervention_pb.StreamInterveneRequest
    return Conversation(
        "/vision_sae.v1.InterventionService/StreamIntervene",
        [ask(plan=plan), *(ask(image=picture) for picture in pictures)],
        intervention_pb.StreamInterveneResponse,
    )


@sendable
def search_patches(
    *,
    text: str | None = None,
    feature: str | None = None,
    source: ImageSource | None = None,
    box: BoxLike | Region | None = None,
    dictionary: str = "",
    count: int = 20,
    page_token: str = "",
    edited_code: search_pb.EditedCodeQuery | None = None,
    examples: search_pb.ExamplesQuery | None = None,
    space: search_pb.SearchSpace.ValueType = search_pb.SEARCH_SPACE_UNSPECIFIED,
    filter: search_pb.PatchFilter | None = None,
    collapse_near_duplicates: bool = False,
    thumbnail_pixels: int = 0,
    omit_thumbnails: bool = False,
) -> Call[search_pb.SearchPatchesResponse]:
    """Patches that show what a text says, that fire a feature, or that are like (a part of) a
    picture, an edited code, or examples."""
    queries = (text, feature, source, edited_code, examples)
    if sum(asked is not None for asked in queries) != 1:
        raise InvalidInputError(
            "give one of a text, a feature or an image to search patches by, or an edited code, or "
            "examples",
            field="query",
        )
    if box is not None and source is None:
        raise InvalidInputError("a box needs the image it lies in", field="box")
    request = search_pb.SearchPatchesRequest(
        dictionary=dictionary_name(dictionary) if dictionary else "",
        page_size=count,
        page_token=page_token,
        edited_code=edited_code,
        examples=examples,
        space=space,
        filter=filter,
        collapse_near_duplicates=collapse_near_duplicates,
        thumbnail_pixels=thumbnail_pixels,
        omit_thumbnails=omit_thumbnails,
    )
    if text is not None:
        request.text = text
    if feature is not None:
        request.feature = feature
    if source is not None:
        request.region.CopyFrom(_image_region(source, box))
    method = "/vision_sae.v1.SearchService/SearchPatches"
    return Call(method, request, search_pb.SearchPatchesResponse)


@sendable
def search_features(
    *,
    text: str | None = None,
    feature: str | None = None,
    source: ImageSource | None = None,
    box: BoxLike | Region | None = None,
    dictionaries: Sequence[str] = (),
    match: FeatureMatch.ValueType = FEATURE_MATCH_UNSPECIFIED,
    filter: str = "",
    full: bool = False,
    exemplars: ExemplarOptions | None = None,
    count: int = 20,
    page_token: str = "",
) -> Call[search_pb.SearchFeaturesResponse]:
    """Features about a text, like a feature, or typical of (a part of) a picture."""
    if sum(query is not None for query in (text, feature, source)) != 1:
        raise InvalidInputError(
            "give one of a text, a feature or an image to search features by", field="query"
        )
    if box is not None and source is None:
        raise InvalidInputError("a box needs the image it lies in", field="box")
    request = search_pb.SearchFeaturesRequest(
        dictionaries=[dictionary_name(name) for name in dictionaries],
        match=match,
        filter=filter,
        view=_view(full),
        exemplars=exemplars,
        page_size=count,
        page_token=page_token,
    )
    if text is not None:
        request.text = text
    if feature is not None:
        request.feature = feature
    if source is not None:
        request.region.CopyFrom(_image_region(source, box))
    method = "/vision_sae.v1.SearchService/SearchFeatures"
    return Call(method, request, search_pb.SearchFeaturesResponse)


@sendable
def describe_feature(
    name: str,
    *,
    describer: str = "",
    force: bool = False,
    metrics: Sequence[ScoreMetric.ValueType] = (),
    full: bool = False,
    exemplars: ExemplarOptions | None = None,
    request_id: str = "",
) -> Call[description_pb.DescribeFeatureResponse]:
    """The description of a feature."""
    request = description_pb.DescribeFeatureRequest(
        feature=name,
        describer=describer,
        force=force,
        metrics=metrics,
        view=_view(full),
        exemplars=exemplars,
        request_id=request_id,
    )
    return _description("DescribeFeature", request, description_pb.DescribeFeatureResponse)


@sendable
def score_description(
    name: str,
    text: str,
    *,
    metrics: Sequence[ScoreMetric.ValueType] = (),
    negatives: Sequence[ScoreNegatives.ValueType] = (),
    sample_size: int = 0,
    seed: int = 0,
) -> Call[description_pb.ScoreDescriptionResponse]:
    """How well a text describes a feature."""
    request = description_pb.ScoreDescriptionRequest(
        feature=name,
        text=text,
        metrics=metrics,
        negatives=negatives,
        sample_size=sample_size,
        seed=seed,
    )
    return _description("ScoreDescription", request, description_pb.ScoreDescriptionResponse)


@sendable
def update_description(
    name: str, text: str | None, *, reason: str = "", etag: str = "", request_id: str = ""
) -> Call[description_pb.UpdateDescriptionResponse]:
    """A person's text for a feature; None, with a ``reason``, that there is none."""
    description = Description(
        name=f"{name}/description",
        text=text,
        abstained=text is None,
        abstention_reason=reason,
        etag=etag,
    )
    request = description_pb.UpdateDescriptionRequest(
        description=description, request_id=request_id
    )
    return _description("UpdateDescription", request, description_pb.UpdateDescriptionResponse)


@sendable
def create_label_job(
    job: LabelJob, *, name: str = "", request_id: str = ""
) -> Call[jobs_pb.CreateLabelJobResponse]:
    """A new label job."""
    request = jobs_pb.CreateLabelJobRequest(label_job=job, label_job_id=name, request_id=request_id)
    return _jobs("CreateLabelJob", request, jobs_pb.CreateLabelJobResponse)


@sendable
def get_label_job(name: str) -> Call[jobs_pb.GetLabelJobResponse]:
    """One label job."""
    request = jobs_pb.GetLabelJobRequest(name=job_name(name))
    return _jobs("GetLabelJob", request, jobs_pb.GetLabelJobResponse)


@sendable
def list_label_jobs(
    *, filter: str = "", page_token: str = ""
) -> Call[jobs_pb.ListLabelJobsResponse]:
    """A page of label jobs."""
    request = jobs_pb.ListLabelJobsRequest(filter=filter, page_token=page_token)
    return _jobs("ListLabelJobs", request, jobs_pb.ListLabelJobsResponse)


@sendable
def cancel_label_job(name: str) -> Call[jobs_pb.CancelLabelJobResponse]:
    """Stop a label job."""
    request = jobs_pb.CancelLabelJobRequest(name=job_name(name))
    return _jobs("CancelLabelJob", request, jobs_pb.CancelLabelJobResponse)


@sendable
def watch_label_job(
    name: str, *, resume_token: str = "", progress_only: bool = False
) -> Call[jobs_pb.WatchLabelJobResponse]:
    """Follow a label job; answered by a stream."""
    request = jobs_pb.WatchLabelJobRequest(
        name=job_name(name), resume_token=resume_token, progress_only=progress_only
    )
    return _jobs("WatchLabelJob", request, jobs_pb.WatchLabelJobResponse)


@sendable
def generate(
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
) -> Call[generation_pb.GenerateResponse]:
    """A steered picture, or a recipe to repeat; answered by a stream."""
    request = generation_pb.GenerateRequest(
        settings=content if isinstance(content, GenerationSettings) else None,
        recipe=content if isinstance(content, Recipe) else None,
        allow_drift=allow_drift,
        omit_twin=omit_twin,
        preview_interval=preview_interval,
        preview_pixels=preview_pixels,
        format=format,
        effect_texts=effect_texts,
        encode_dictionaries=[dictionary_name(name) for name in encode_dictionaries],
        request_id=request_id,
    )
    method = "/vision_sae.v1.GenerationService/Generate"
    return Call(method, request, generation_pb.GenerateResponse)


def _catalog(rpc: str, request: Message, response: type[R_co]) -> Call[R_co]:
    return Call(f"/vision_sae.v1.CatalogService/{rpc}", request, response)


def _attribution(rpc: str, request: Message, response: type[R_co]) -> Call[R_co]:
    return Call(f"/vision_sae.v1.AttributionService/{rpc}", request, response)


def _description(rpc: str, request: Message, response: type[R_co]) -> Call[R_co]:
    return Call(f"/vision_sae.v1.DescriptionService/{rpc}", request, response)


def _jobs(rpc: str, request: Message, response: type[R_co]) -> Call[R_co]:
    return Call(f"/vision_sae.v1.LabelJobService/{rpc}", request, response)


def _view(full: bool) -> FeatureView.ValueType:
    return FEATURE_VIEW_FULL if full else FEATURE_VIEW_BASIC


def box_message(box: BoxLike) -> Box:
    """The box as a message."""
    x0, y0, x1, y1 = box
    return Box(x0=x0, y0=y0, x1=x1, y1=y1)


def _region(box: BoxLike | Region | None) -> Region | None:
    return box if box is None or isinstance(box, Region) else Region(box=box_message(box))


def _image_region(source: ImageSource, box: BoxLike | Region | None) -> search_pb.ImageRegion:
    return search_pb.ImageRegion(image=image(source), region=_region(box))

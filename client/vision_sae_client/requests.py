"""Every request, built in one place for the sync and the async client."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

from google.protobuf.message import Message

from vision_sae.errors import InvalidInputError
from vision_sae.v1 import attribution_service_pb2 as attribution_pb
from vision_sae.v1 import catalog_service_pb2 as catalog_pb
from vision_sae.v1 import description_service_pb2 as description_pb
from vision_sae.v1 import search_service_pb2 as search_pb
from vision_sae.v1.exemplar_pb2 import ExemplarOptions
from vision_sae.v1.feature_pb2 import FEATURE_VIEW_BASIC, FEATURE_VIEW_FULL, FeatureView
from vision_sae.v1.image_pb2 import Box, Region
from vision_sae.v1.ledger_pb2 import ATTRIBUTION_METHOD_UNSPECIFIED, AttributionMethod
from vision_sae.v1.target_pb2 import Target
from vision_sae_client import targets
from vision_sae_client.images import ImageSource, image

R_co = TypeVar("R_co", bound=Message, covariant=True)

BoxLike: TypeAlias = tuple[float, float, float, float]
"""(x0, y0, x1, y1) in pixels of the original picture, half-open."""


@dataclass(frozen=True)
class Call(Generic[R_co]):
    """One unary call, ready to be sent over any channel."""

    method: str
    """Full name of the rpc, ``/vision_sae.v1.CatalogService/GetFeature``."""
    request: Message
    response: type[R_co]


def dictionary_name(name: str) -> str:
    """``dictionaries/{dictionary}``, from the whole name or its last part."""
    return name if name.startswith("dictionaries/") else f"dictionaries/{name}"


def server_info() -> Call[catalog_pb.GetServerInfoResponse]:
    """Versions, limits and capabilities."""
    return _catalog(
        "GetServerInfo", catalog_pb.GetServerInfoRequest(), catalog_pb.GetServerInfoResponse
    )


def list_models(page_token: str = "") -> Call[catalog_pb.ListModelsResponse]:
    """A page of models."""
    request = catalog_pb.ListModelsRequest(page_token=page_token)
    return _catalog("ListModels", request, catalog_pb.ListModelsResponse)


def list_dictionaries(page_token: str = "") -> Call[catalog_pb.ListDictionariesResponse]:
    """A page of dictionaries."""
    request = catalog_pb.ListDictionariesRequest(page_token=page_token)
    return _catalog("ListDictionaries", request, catalog_pb.ListDictionariesResponse)


def get_dictionary(name: str) -> Call[catalog_pb.GetDictionaryResponse]:
    """One dictionary."""
    request = catalog_pb.GetDictionaryRequest(name=dictionary_name(name))
    return _catalog("GetDictionary", request, catalog_pb.GetDictionaryResponse)


def list_features(
    dictionary: str,
    *,
    filter: str = "",
    order_by: str = "",
    full: bool = False,
    page_size: int = 100,
    page_token: str = "",
) -> Call[catalog_pb.ListFeaturesResponse]:
    """A page of features."""
    request = catalog_pb.ListFeaturesRequest(
        parent=dictionary_name(dictionary),
        filter=filter,
        order_by=order_by,
        view=_view(full),
        page_size=page_size,
        page_token=page_token,
    )
    return _catalog("ListFeatures", request, catalog_pb.ListFeaturesResponse)


def get_feature(
    name: str, *, full: bool = True, exemplars: ExemplarOptions | None = None
) -> Call[catalog_pb.GetFeatureResponse]:
    """One feature, with its exemplars when ``full``."""
    request = catalog_pb.GetFeatureRequest(name=name, view=_view(full), exemplars=exemplars)
    return _catalog("GetFeature", request, catalog_pb.GetFeatureResponse)


def encode(
    source: ImageSource,
    dictionary: str,
    *,
    top_k: int = 10,
    box: BoxLike | None = None,
    full: bool = False,
    exemplars: ExemplarOptions | None = None,
    max_patches: int | None = None,
    include_codes: bool = False,
) -> Call[attribution_pb.EncodeResponse]:
    """The features that fire in a picture."""
    request = attribution_pb.EncodeRequest(
        image=image(source),
        dictionary=dictionary_name(dictionary),
        top_k=top_k,
        region=_region(box),
        view=_view(full),
        exemplars=exemplars,
        max_patches=max_patches,
        include_codes=include_codes,
    )
    return _attribution("Encode", request, attribution_pb.EncodeResponse)


def attribute(
    source: ImageSource,
    dictionaries: Sequence[str],
    *,
    target: Target | None = None,
    method: AttributionMethod.ValueType = ATTRIBUTION_METHOD_UNSPECIFIED,
    top_k: int = 10,
    full: bool = False,
    exemplars: ExemplarOptions | None = None,
    max_patches: int | None = None,
) -> Call[attribution_pb.AttributeResponse]:
    """What features contribute to a target; without one, to the mean embedding."""
    request = attribution_pb.AttributeRequest(
        image=image(source),
        dictionaries=[dictionary_name(name) for name in dictionaries],
        target=target or targets.mean_embedding(),
        method=method,
        top_k=top_k,
        view=_view(full),
        exemplars=exemplars,
        max_patches=max_patches,
    )
    return _attribution("Attribute", request, attribution_pb.AttributeResponse)


def search_patches(
    *,
    feature: str | None = None,
    source: ImageSource | None = None,
    box: BoxLike | None = None,
    dictionary: str = "",
    count: int = 20,
    page_token: str = "",
) -> Call[search_pb.SearchPatchesResponse]:
    """Patches that fire a feature, or that are like (a part of) a picture."""
    if (feature is None) == (source is None):
        raise InvalidInputError("give either a feature or an image to search by", field="query")
    if box is not None and source is None:
        raise InvalidInputError("a box needs the image it lies in", field="box")
    request = search_pb.SearchPatchesRequest(
        dictionary=dictionary_name(dictionary) if dictionary else "",
        page_size=count,
        page_token=page_token,
    )
    if feature is not None:
        request.feature = feature
    if source is not None:
        request.region.image.CopyFrom(image(source))
        if box is not None:
            request.region.region.box.CopyFrom(_box(box))
    method = "/vision_sae.v1.SearchService/SearchPatches"
    return Call(method, request, search_pb.SearchPatchesResponse)


def describe_feature(
    name: str, *, describer: str = "", force: bool = False, full: bool = False
) -> Call[description_pb.DescribeFeatureResponse]:
    """The description of a feature."""
    request = description_pb.DescribeFeatureRequest(
        feature=name, describer=describer, force=force, view=_view(full)
    )
    method = "/vision_sae.v1.DescriptionService/DescribeFeature"
    return Call(method, request, description_pb.DescribeFeatureResponse)


def _catalog(rpc: str, request: Message, response: type[R_co]) -> Call[R_co]:
    return Call(f"/vision_sae.v1.CatalogService/{rpc}", request, response)


def _attribution(rpc: str, request: Message, response: type[R_co]) -> Call[R_co]:
    return Call(f"/vision_sae.v1.AttributionService/{rpc}", request, response)


def _view(full: bool) -> FeatureView.ValueType:
    return FEATURE_VIEW_FULL if full else FEATURE_VIEW_BASIC


def _box(box: BoxLike) -> Box:
    x0, y0, x1, y1 = box
    return Box(x0=x0, y0=y0, x1=x1, y1=y1)


def _region(box: BoxLike | None) -> Region | None:
    return None if box is None else Region(box=_box(box))

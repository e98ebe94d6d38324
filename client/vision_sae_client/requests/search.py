"""Requests that search for patches and for features."""

from __future__ import annotations

from collections.abc import Sequence

from vision_sae.errors import InvalidInputError
from vision_sae.v1 import search_service_pb2 as pb
from vision_sae.v1.exemplar_pb2 import ExemplarOptions
from vision_sae.v1.image_pb2 import Region
from vision_sae_client.images import BoxLike, ImageSource, image, region_message
from vision_sae_client.requests.names import dictionary_name, view
from vision_sae_client.values import sendable


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
    edited_code: pb.EditedCodeQuery | None = None,
    examples: pb.ExamplesQuery | None = None,
    space: pb.SearchSpace.ValueType = pb.SEARCH_SPACE_UNSPECIFIED,
    filter: pb.PatchFilter | None = None,
    collapse_near_duplicates: bool = False,
    thumbnail_pixels: int = 0,
    omit_thumbnails: bool = False,
) -> pb.SearchPatchesRequest:
    """Patches that match a text, fire a feature, or are similar to (a part of) a picture, an edited
    code, or examples."""
    queries = (text, feature, source, edited_code, examples)
    if sum(query is not None for query in queries) != 1:
        raise InvalidInputError(
            "give one of a text, a feature or an image to search patches by, or an edited code, or "
            "examples",
            field="query",
        )
    request = pb.SearchPatchesRequest(
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
    _write_query(request, text, feature, source, box)
    return request


@sendable
def search_features(
    *,
    text: str | None = None,
    feature: str | None = None,
    source: ImageSource | None = None,
    box: BoxLike | Region | None = None,
    dictionaries: Sequence[str] = (),
    match: pb.FeatureMatch.ValueType = pb.FEATURE_MATCH_UNSPECIFIED,
    filter: str = "",
    full: bool = False,
    exemplars: ExemplarOptions | None = None,
    count: int = 20,
    page_token: str = "",
) -> pb.SearchFeaturesRequest:
    """Features that match a text, resemble a feature, or fire in (a part of) a picture."""
    if sum(query is not None for query in (text, feature, source)) != 1:
        raise InvalidInputError(
            "give one of a text, a feature or an image to search features by", field="query"
        )
    request = pb.SearchFeaturesRequest(
        dictionaries=[dictionary_name(name) for name in dictionaries],
        match=match,
        filter=filter,
        view=view(full),
        exemplars=exemplars,
        page_size=count,
        page_token=page_token,
    )
    _write_query(request, text, feature, source, box)
    return request


def _write_query(
    request: pb.SearchPatchesRequest | pb.SearchFeaturesRequest,
    text: str | None,
    feature: str | None,
    source: ImageSource | None,
    box: BoxLike | Region | None,
) -> None:
    """Write a query by text, by feature or by picture into a request."""
    if text is not None:
        request.text = text
    if feature is not None:
        request.feature = feature
    if source is not None:
        region = pb.ImageRegion(image=image(source), region=region_message(box))
        request.region.CopyFrom(region)
    elif box is not None:
        raise InvalidInputError("a box needs the image it lies in", field="box")

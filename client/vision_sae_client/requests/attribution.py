"""Requests for the features of a picture and for their contributions to a target."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import SupportsIndex, TypedDict, Unpack

from vision_sae.v1 import attribution_service_pb2 as pb
from vision_sae.v1.exemplar_pb2 import ExemplarOptions
from vision_sae.v1.image_pb2 import HEATMAP_FORMAT_UNSPECIFIED, HeatmapFormat, Region
from vision_sae.v1.ledger_pb2 import (
    ATTRIBUTION_METHOD_UNSPECIFIED,
    AttributionMethod,
    ReferenceCode,
)
from vision_sae.v1.target_pb2 import Target
from vision_sae_client import targets
from vision_sae_client.images import BoxLike, ImageSource, image, region_message
from vision_sae_client.requests.names import dictionary_name, view
from vision_sae_client.values import sendable


@sendable
def encode(
    source: ImageSource,
    dictionary: str,
    *,
    top_k: int = 10,
    box: BoxLike | Region | None = None,
    order: pb.EncodeOrder.ValueType = pb.ENCODE_ORDER_UNSPECIFIED,
    full: bool = False,
    exemplars: ExemplarOptions | None = None,
    max_patches: int | None = None,
    include_codes: bool = False,
    min_activation: float = 0.0,
    heatmap_format: HeatmapFormat.ValueType = HEATMAP_FORMAT_UNSPECIFIED,
    noising: pb.Noising | None = None,
) -> pb.EncodeRequest:
    """The features that fire in a picture."""
    return pb.EncodeRequest(
        image=image(source),
        dictionary=dictionary_name(dictionary),
        top_k=top_k,
        region=region_message(box),
        order=order,
        view=view(full),
        exemplars=exemplars,
        max_patches=max_patches,
        include_codes=include_codes,
        min_activation=min_activation,
        heatmap_format=heatmap_format,
        noising=noising,
    )


class AttributeOptions(TypedDict, total=False):
    """The options of an attribution; see `AttributeRequest`."""

    method: AttributionMethod.ValueType
    baseline: ImageSource | ReferenceCode.ValueType | None
    """The code, or the other picture, that contributions are measured from."""
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
) -> pb.AttributeRequest:
    """The contributions of features to a target, by default the mean embedding."""
    return pb.AttributeRequest(
        image=image(source),
        dictionaries=[dictionary_name(name) for name in dictionaries],
        target=target or targets.mean_embedding(),
        method=method,
        baseline=_baseline(baseline),
        top_k=top_k,
        view=view(full),
        exemplars=exemplars,
        max_patches=max_patches,
        faithfulness=faithfulness,
        special_tokens=special_tokens,
        nodes=nodes,
        heatmap_format=heatmap_format,
        context_images=[image(each) for each in context_images],
        components=components,
    )


def stream_attribute(
    sources: Sequence[ImageSource],
    dictionaries: Sequence[str],
    *,
    target: Target | None = None,
    **options: Unpack[AttributeOptions],
) -> list[pb.StreamAttributeRequest]:
    """`attribute` for any number of pictures; the id of a picture is its number, from 0."""
    return [
        pb.StreamAttributeRequest(
            id=str(number), request=attribute(source, dictionaries, target=target, **options)
        )
        for number, source in enumerate(sources)
    ]


def _baseline(
    source: ImageSource | ReferenceCode.ValueType | None,
) -> pb.AttributionBaseline | None:
    if source is None:
        return None
    if isinstance(source, SupportsIndex):
        reference = ReferenceCode.ValueType(operator.index(source))
        return pb.AttributionBaseline(reference=reference)
    return pb.AttributionBaseline(image=image(source))

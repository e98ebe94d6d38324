"""Requests for steered pictures."""

from __future__ import annotations

from collections.abc import Sequence

from vision_sae.v1 import generation_service_pb2 as pb
from vision_sae.v1.image_pb2 import IMAGE_FORMAT_UNSPECIFIED, ImageFormat
from vision_sae_client.requests.names import dictionary_name
from vision_sae_client.values import sendable


@sendable
def generate(
    content: pb.GenerationSettings | pb.Recipe,
    *,
    allow_drift: bool = False,
    omit_twin: bool = False,
    preview_interval: int = 0,
    preview_pixels: int = 0,
    format: ImageFormat.ValueType = IMAGE_FORMAT_UNSPECIFIED,
    effect_texts: Sequence[str] = (),
    encode_dictionaries: Sequence[str] = (),
    request_id: str = "",
) -> pb.GenerateRequest:
    """A steered picture from settings or from a recipe; the answer is a stream."""
    return pb.GenerateRequest(
        settings=content if isinstance(content, pb.GenerationSettings) else None,
        recipe=content if isinstance(content, pb.Recipe) else None,
        allow_drift=allow_drift,
        omit_twin=omit_twin,
        preview_interval=preview_interval,
        preview_pixels=preview_pixels,
        format=format,
        effect_texts=effect_texts,
        encode_dictionaries=[dictionary_name(name) for name in encode_dictionaries],
        request_id=request_id,
    )

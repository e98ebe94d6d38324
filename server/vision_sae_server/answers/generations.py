"""Answers of Generate: progress, pictures, their change, and the features that fire in them."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from google.protobuf.duration_pb2 import Duration
from PIL import Image

from vision_sae.dictionaries.protocol import Codes
from vision_sae.dictionaries.resident import resident
from vision_sae.models.grid import Geometry
from vision_sae.steering.effects import Effect, changed_share
from vision_sae.steering.generation import SteeredPictures
from vision_sae.transfers import to_host
from vision_sae.v1 import attribution_service_pb2, image_pb2
from vision_sae.v1 import generation_service_pb2 as pb
from vision_sae_server.answers.encodings import Encoded, encode_response
from vision_sae_server.served import Served
from vision_sae_server.state import PreparedPicture

_SAVED: dict[int, tuple[str, dict[str, Any]]] = {
    image_pb2.IMAGE_FORMAT_PNG: ("PNG", {}),
    image_pb2.IMAGE_FORMAT_JPEG: ("JPEG", {"quality": 90}),
    image_pb2.IMAGE_FORMAT_WEBP: ("WEBP", {"quality": 85}),
}


class SteeredCodes:
    """Collects the site vectors of the steered picture at each step, for dictionaries to encode.

    They stay on the model's device, so that no step waits for a copy.
    """

    def __init__(self, dictionaries: Sequence[Served]) -> None:
        self.sites = list(dict.fromkeys(served.bundle.site for served in dictionaries))
        self._steps: list[dict[str, torch.Tensor]] = []

    def add(self, vectors: dict[str, torch.Tensor]) -> None:
        """Add {site: vectors (P, D)} of one step."""
        self._steps.append({site: v.float() for site, v in vectors.items()})

    def codes(self, served: Served) -> Encoded:
        """The codes (P, steps * K), averaged over the steps, and their joint explained variance."""
        steps = [step[served.bundle.site] for step in self._steps]
        dictionary = resident(served.bundle.dictionary, steps[0].device)
        coded = [dictionary.encode(vectors) for vectors in steps]
        indices = torch.cat([codes.indices for codes in coded], dim=1)
        values = torch.cat([codes.values for codes in coded], dim=1) / len(coded)
        decoded = torch.cat([dictionary.decode(codes) for codes in coded])
        share = served.bundle.explained_share(torch.cat(steps), decoded)
        indices, values, share = to_host(indices, values, share)
        return Encoded(Codes(indices, values), float(share))


def steered_encoding(
    served: Served, steered: SteeredPictures, codes: Encoded
) -> attribution_service_pb2.EncodeResponse:
    """The features that fired in a generated picture."""
    width, height = steered.picture.size
    grid = served.model.generator.grid(served.bundle.site, height, width)
    shown = PreparedPicture(torch.empty(0), Geometry.whole(width, height))
    everywhere = np.ones(grid.patches, dtype=np.bool_)
    request = attribution_service_pb2.EncodeRequest()
    return encode_response(served, shown, request, codes, everywhere, grid)


def encoded_image(picture: Image.Image, format_: int) -> image_pb2.EncodedImage:
    """A picture, encoded in a format of the contract."""
    kind, options = _SAVED[format_]
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return image_pb2.EncodedImage(
        data=buffer.getvalue(),
        format=image_pb2.ImageFormat.Name(format_),  # type: ignore[arg-type]  # protobuf accepts a name
        width=picture.width,
        height=picture.height,
    )


def progress_message(
    step: int,
    steps: int,
    begun: float,
    *,
    queue: int = 0,
    preview: image_pb2.EncodedImage | None = None,
) -> pb.GenerateResponse:
    """The progress of a generation; ``begun`` is its start in seconds of the monotonic clock."""
    elapsed = Duration()
    elapsed.FromMicroseconds(round((time.monotonic() - begun) * 1e6))
    return pb.GenerateResponse(
        progress=pb.GenerationProgress(
            step=step, steps=steps, preview=preview, queue_position=queue, elapsed=elapsed
        )
    )


def effect_message(effect: Effect) -> pb.GenerationEffect:
    """The change of a picture, everywhere and inside and outside of the region that edits could
    reach, and the share of its pixels that changed."""
    pixel, perceptual = effect.pixel, effect.perceptual
    message = pb.GenerationEffect(
        pixel_change=pixel.everywhere,
        pixel_change_inside=pixel.inside,
        pixel_change_outside=pixel.outside,
        perceptual_change=perceptual.everywhere,
        perceptual_change_inside=perceptual.inside,
        perceptual_change_outside=perceptual.outside,
    )
    changed, pixels = changed_share(effect.difference), effect.difference.size
    message.metrics.add(name="changed_share", value=changed, count=pixels)
    return message

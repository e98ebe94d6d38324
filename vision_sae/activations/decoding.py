"""Pictures -> what a model takes, in threads that leave the model's own alone."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeAlias

from PIL import Image
from torch import Tensor

from vision_sae.activations.store import ImageRecord
from vision_sae.models.protocol import Model
from vision_sae.pictures.folder import Picture
from vision_sae.pictures.reading import Skipped, attempt


class Decoded(NamedTuple):
    """A picture made ready for the model."""

    record: ImageRecord
    pixels: Tensor
    """The model's input (3, H, W), float32."""
    thumbnail: bytes
    """A small JPEG."""


Outcome: TypeAlias = Decoded | Skipped


def _thumbnail(image: Image.Image, side: int) -> bytes:
    """JPEG of ``image``, which is shrunk in its place until its longer side is ``side``."""
    # Beside a ViT on two cores the finer Lanczos filter costs a visible share of the harvest.
    image.thumbnail((side, side), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def decode(picture: Picture, model: Model, side: int) -> Outcome:
    """Decode one file for ``model``, with a thumbnail of ``side`` pixels."""

    def ready(image: Image.Image) -> Decoded:
        said = picture.caption, picture.tags, picture.source
        record = ImageRecord(picture.id, image.width, image.height, *said)
        return Decoded(record, model.preprocess(image), _thumbnail(image, side))

    return attempt(picture, ready)


def decode_batches(
    pool: ThreadPoolExecutor,
    model: Model,
    batches: Iterable[Sequence[Picture]],
    side: int,
    *,
    ahead: int,
) -> Iterator[list[Outcome]]:
    """Decode batch by batch, in order; ``ahead`` batches more than the reader has asked for."""
    waiting: deque[list[Future[Outcome]]] = deque()
    for batch in batches:
        waiting.append([pool.submit(decode, picture, model, side) for picture in batch])
        if len(waiting) > ahead:
            yield [future.result() for future in waiting.popleft()]
    for futures in waiting:
        yield [future.result() for future in futures]


def batches_ahead(model: Model) -> int:
    """How many batches to decode while the model runs.

    One on an accelerator. None on a CPU, whose cores the model keeps busy: a thread beside it
    halts all of its own at every barrier, which costs more than decoding between the passes.
    """
    return 0 if model.device.type == "cpu" else 1

"""Picture files -> model inputs, decoded by threads while the model runs."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from vision_sae.activations.store import ImageRecord
from vision_sae.models.protocol import Model
from vision_sae.pictures.folder import Picture
from vision_sae.pictures.reading import Skipped, attempt


class Decoded(NamedTuple):
    """A decoded and preprocessed picture."""

    record: ImageRecord
    pixels: Float[Tensor, "C H W"]
    """The model's input."""
    thumbnail: bytes
    """A small JPEG."""


class DecodedBatch(NamedTuple):
    """The decoded pictures and the skipped files of one batch."""

    decoded: list[Decoded]
    skipped: list[Skipped]

    @classmethod
    def of(cls, outcomes: Sequence[Decoded | Skipped]) -> DecodedBatch:
        """Separate the decoded pictures from the skipped files."""
        return cls(
            [outcome for outcome in outcomes if isinstance(outcome, Decoded)],
            [outcome for outcome in outcomes if isinstance(outcome, Skipped)],
        )

    @property
    def records(self) -> list[ImageRecord]:
        """The records of the pictures."""
        return [picture.record for picture in self.decoded]

    @property
    def thumbnails(self) -> list[bytes]:
        """The JPEG thumbnails of the pictures."""
        return [picture.thumbnail for picture in self.decoded]

    @property
    def pixels(self) -> Float[Tensor, "B C H W"]:
        """The model's input; the batch must hold at least one picture."""
        return torch.stack([picture.pixels for picture in self.decoded])


def _thumbnail(image: Image.Image, side: int) -> bytes:
    """JPEG of ``image``, which is shrunk in place until its longer side has ``side`` pixels."""
    # The finer Lanczos filter would take a visible share of a ViT's harvest on two cores.
    image.thumbnail((side, side), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def decode(picture: Picture, model: Model, side: int) -> Decoded | Skipped:
    """Decode one file for ``model``, with a thumbnail whose longer side has ``side`` pixels."""

    def ready(image: Image.Image) -> Decoded:
        words = picture.caption, picture.tags, picture.source
        record = ImageRecord(picture.id, image.width, image.height, *words)
        return Decoded(record, model.preprocess(image), _thumbnail(image, side))

    return attempt(picture, ready)


def decode_batches(
    pool: ThreadPoolExecutor,
    model: Model,
    batches: Iterable[Sequence[Picture]],
    side: int,
    *,
    ahead: int,
) -> Iterator[list[Decoded | Skipped]]:
    """Decode batch by batch, in order, at most ``ahead`` batches ahead of the consumer."""
    waiting: deque[list[Future[Decoded | Skipped]]] = deque()
    for batch in batches:
        waiting.append([pool.submit(decode, picture, model, side) for picture in batch])
        if len(waiting) > ahead:
            yield [future.result() for future in waiting.popleft()]
    for futures in waiting:
        yield [future.result() for future in futures]


def batches_ahead(model: Model) -> int:
    """The number of batches to decode while the model runs: 2 on an accelerator, 0 on a CPU.

    An accelerator works on one batch while the next is copied to it, so the threads decode the one
    after. On a CPU the model keeps all cores busy. The threads of a forward pass meet after every
    step, so a core that decodes delays all of them; decoding between the passes costs less.
    """
    return 0 if model.device.type == "cpu" else 2

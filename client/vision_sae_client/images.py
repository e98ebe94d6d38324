"""Pictures on their way to the server."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TypeAlias

from PIL import Image

from vision_sae.errors import InvalidImageError, InvalidInputError
from vision_sae.pictures.decode import guarded
from vision_sae.v1 import image_pb2

ImageSource: TypeAlias = str | Path | bytes | Image.Image
"""A path, the bytes of an encoded file, or a PIL image."""
BoxLike: TypeAlias = tuple[float, float, float, float]
"""(x0, y0, x1, y1) in pixels of the original picture, half-open."""

_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})


def image_bytes(source: ImageSource) -> bytes:
    """The encoded file of a picture. A PIL image becomes a PNG: every pixel arrives exactly.

    Raises `InvalidImageError` when a file cannot be read.
    """
    if isinstance(source, bytes):
        return source
    if isinstance(source, Image.Image):
        buffer = io.BytesIO()
        exact = source if source.mode in _PNG_MODES else source.convert("RGB")
        exact.save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()
    try:
        return Path(source).read_bytes()
    except OSError as error:
        raise InvalidImageError(
            f"{source} cannot be read ({error.strerror}); give the path of a JPEG, PNG or WebP",
            field="image",
        ) from error


def opened(source: ImageSource) -> Image.Image:
    """The picture itself. Raises `InvalidImageError` for what is none."""
    if isinstance(source, Image.Image):
        return source
    data = image_bytes(source)
    with guarded():
        picture = Image.open(io.BytesIO(data))
        picture.load()
    return picture


def image(source: ImageSource) -> image_pb2.Image:
    """The message that carries a picture."""
    return image_pb2.Image(data=image_bytes(source))


def parse_box(words: str) -> BoxLike:
    """``x0,y0,x1,y1`` -> four numbers."""
    try:
        x0, y0, x1, y1 = (float(word) for word in words.split(","))
    except ValueError as error:
        raise InvalidInputError(
            f"{words!r} is no box; give four numbers x0,y0,x1,y1", field="box"
        ) from error
    return x0, y0, x1, y1


def parse_numbers(words: str, field: str) -> list[float]:
    """``0,0.5,1`` -> numbers."""
    try:
        return [float(word) for word in words.split(",")]
    except ValueError as error:
        raise InvalidInputError(
            f"{words!r} are no numbers; write 0,0.5,1 for example", field=field
        ) from error

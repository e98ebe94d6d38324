"""Prepares pictures for requests."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageFile, ImageOps

from vision_sae.errors import InvalidImageError, InvalidInputError
from vision_sae.pictures.decode import guarded
from vision_sae.v1 import image_pb2

ImageSource: TypeAlias = str | Path | bytes | Image.Image
"""A path, the bytes of an encoded file, or a PIL image."""
BoxLike: TypeAlias = tuple[float, float, float, float]
"""(x0, y0, x1, y1) in pixels of the original picture, half-open."""

_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})
_WITH_ALPHA = {"La": "LA", "RGBa": "RGBA", "PA": "RGBA"}
_AS_IT_CAME = frozenset({"JPEG", "MPO", "PNG", "WEBP"})
"""Formats, as PIL calls them, that the server reads itself."""
_MOST_BYTES = 16 * 2**20
"""The most bytes of a picture that a server accepts by default; see ServerLimits."""
_JPEG_QUALITY = 95


def image_bytes(source: ImageSource) -> bytes:
    """The encoded file of a picture.

    Files and bytes are sent unchanged, and so is a PIL image that was opened and not yet decoded,
    because its pixels cannot have changed. Any other PIL image is rotated by its EXIF orientation
    and sent as a PNG, without loss; if the PNG exceeds a server's limit, as a JPEG of quality 95.
    Raises `InvalidImageError` for a picture that cannot be read or has no pixels.
    """
    if isinstance(source, bytes):
        return source
    if isinstance(source, Image.Image):
        return _as_it_came(source) or _encoded(source)
    try:
        return Path(source).read_bytes()
    except OSError as error:
        raise InvalidImageError(
            f"{source} cannot be read ({error.strerror}); give the path of a JPEG, PNG or WebP",
            field="image",
        ) from error
    except (TypeError, ValueError) as error:  # not a path, or a path with a null character
        raise InvalidImageError(
            "a picture is a path, the bytes of a file, or a PIL image", field="image"
        ) from error


def _as_it_came(picture: Image.Image) -> bytes | None:
    """The file of a PIL image that was opened and not yet decoded; None for other images."""
    if not isinstance(picture, ImageFile.ImageFile) or picture.format not in _AS_IT_CAME:
        return None
    file = picture.fp
    if not picture.tile or file is None or file.closed or picture.tell():
        return None
    place = file.tell()
    try:
        file.seek(0)
        return bytes(file.read())
    finally:
        file.seek(place)


def _encoded(picture: Image.Image) -> bytes:
    try:
        exact = _exact(ImageOps.exif_transpose(picture))
        png = _saved(exact, "PNG", compress_level=1)
        if len(png) <= _MOST_BYTES:
            return png
        return _saved(_on_white(exact), "JPEG", quality=_JPEG_QUALITY)
    except InvalidImageError:
        raise
    except Exception as error:  # Pillow decodes the file here, and raises many types
        raise InvalidImageError(
            f"this PIL image cannot be encoded ({error}); give the file that it came from",
            field="image",
        ) from error


def _saved(picture: Image.Image, format: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def _exact(picture: Image.Image) -> Image.Image:
    """The picture in a mode that PNG supports, without loss where possible."""
    if picture.mode in _PNG_MODES:
        return picture
    if picture.mode in _WITH_ALPHA:
        return picture.convert(_WITH_ALPHA[picture.mode])
    if not picture.mode.startswith(("I", "F")):
        return picture.convert("RGB")
    values = np.asarray(picture)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 65535) or (picture.mode == "F" and 0 < high <= 1):
        raise InvalidImageError(
            f"a PIL image of mode {picture.mode} with values from {low:g} to {high:g}; scale them "
            "to 0 to 255 and convert it to L",
            field="image",
        )
    return Image.fromarray(values.round().astype(np.uint8 if high <= 255 else np.uint16))


def _on_white(picture: Image.Image) -> Image.Image:
    if picture.mode == "I;16":
        return Image.fromarray((np.asarray(picture) // 257).astype(np.uint8))
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    above = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", above.size, "white"), above).convert("RGB")


def opened(source: ImageSource) -> Image.Image:
    """The upright PIL image of a picture. Raises `InvalidImageError` for an unreadable one."""
    if isinstance(source, Image.Image):
        return source
    data = image_bytes(source)
    with guarded():
        return ImageOps.exif_transpose(Image.open(io.BytesIO(data)))


def image(source: ImageSource) -> image_pb2.Image:
    """The message of a picture."""
    return image_pb2.Image(data=image_bytes(source))


def region_message(box: BoxLike | image_pb2.Region | None) -> image_pb2.Region | None:
    """The message of a part of a picture; None means the whole picture."""
    if box is None or isinstance(box, image_pb2.Region):
        return box
    x0, y0, x1, y1 = box
    return image_pb2.Region(box=image_pb2.Box(x0=x0, y0=y0, x1=x1, y1=y1))


def parse_box(words: str) -> BoxLike:
    """Parse ``x0,y0,x1,y1`` into four numbers."""
    try:
        x0, y0, x1, y1 = (float(word) for word in words.split(","))
    except ValueError as error:
        raise InvalidInputError(
            f"{words[:80]!r} is no box; give four numbers x0,y0,x1,y1", field="box"
        ) from error
    return x0, y0, x1, y1


def parse_numbers(words: str, field: str) -> list[float]:
    """Parse numbers separated by commas, ``0,0.5,1``."""
    try:
        return [float(word) for word in words.split(",")]
    except ValueError as error:
        raise InvalidInputError(
            f"{words[:80]!r} are no numbers; write 0,0.5,1 for example", field=field
        ) from error

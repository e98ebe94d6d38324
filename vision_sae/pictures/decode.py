"""Decoding of untrusted bytes to RGB pictures, within limits.

The rules: JPEG, PNG and WebP only; the header is checked before any pixel is decoded; EXIF
orientation is applied; the first frame of an animation is taken; alpha and transparent values of
any depth are composited on white; 16-bit greyscale is scaled to 8 bits; CMYK and palettes are
converted; texts and colour profiles are ignored, however large; truncated data is refused.

All untrusted bytes are decoded here: any exception of a decoder becomes `InvalidImageError`.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from vision_sae.errors import ImageTooLargeError, InvalidImageError, VisionSaeError, shortened
from vision_sae.pictures.png import transparent, without_notes

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_BYTES = 16 * 2**20
MAX_PIXELS = 50_000_000

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""{EXIF orientation: the transposition that puts the picture upright}; other values need none."""


@contextmanager
def guarded() -> Iterator[None]:
    """Convert any exception in the body, which opens, turns, converts or shrinks a picture, to
    `InvalidImageError`, or to `ImageTooLargeError` when memory runs out.

    Pillow, struct and zlib raise exceptions of nearly every type on a broken file, so all types
    are converted.
    """
    try:
        yield
    except VisionSaeError:
        raise
    except UnidentifiedImageError as error:
        raise InvalidImageError(
            "the bytes are not a JPEG, PNG or WebP picture; convert the file to one of these",
            field="image",
        ) from error
    except (Image.DecompressionBombError, MemoryError) as error:
        raise ImageTooLargeError(
            f"the image needs too much memory ({_cause(error)}); send a smaller one", field="image"
        ) from error
    except Exception as error:
        raise InvalidImageError(
            f"the image is broken or truncated ({_cause(error)}); send the whole file",
            field="image",
        ) from error


def _cause(error: BaseException) -> str:
    return shortened(" ".join(str(error).split())) or "its decoder stopped"


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Silence Pillow's warnings, which would fill the log; `decode_image` has its own limits."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", module="PIL")
        yield


def decode_image(
    data: bytes, *, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Decode a picture to RGB.

    Raises `InvalidImageError` for anything but a whole JPEG, PNG or WebP, and, before decoding,
    `ImageTooLargeError` above ``max_bytes`` or ``max_pixels``; it raises no other error.
    """
    if not data:
        raise InvalidImageError(
            "the image is empty (0 bytes); send a JPEG, PNG or WebP", field="image"
        )
    if len(data) > max_bytes:
        raise ImageTooLargeError(
            f"the image has {len(data)} bytes, the limit is {max_bytes}; "
            "send a smaller or more compressed one",
            field="image",
        )
    with guarded(), _without_warnings():
        data = without_notes(data)
        image = _open(data, max_pixels)
        image.load()
        rgb = _to_rgb(image, data)
        orientation = image.getexif().get(ExifTags.Base.Orientation)
        turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
        return rgb if turn is None else rgb.transpose(turn)


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """Read the header alone; raises `ImageTooLargeError` above ``max_pixels``."""
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    width, height = image.size
    if width * height > max_pixels:
        raise ImageTooLargeError(
            f"the image has {width} x {height} = {width * height} pixels, "
            f"the limit is {max_pixels}; send a smaller one",
            field="image",
        )
    return image


def _to_rgb(image: Image.Image, data: bytes) -> Image.Image:
    """A loaded picture, composited on white, without metadata; ``data`` is the file's content."""
    clear = transparent(image, data)
    if clear is None and image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    if clear is not None:
        image.info.pop("transparency")  # `convert` would compare the value differently
    if image.mode.startswith("I"):  # 16-bit greyscale; convert("RGB") would clip at 255
        grey = np.asarray(image).astype(np.uint32) // 257
        rgb = Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    else:
        rgb = image.convert("RGB")
    if clear is not None:
        rgb.paste((255, 255, 255), mask=Image.fromarray(clear))
    return rgb

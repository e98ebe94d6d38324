"""Bytes that claim to be a picture -> RGB, within limits, or a clear refusal.

Written rules: JPEG, PNG and WebP only; the header is read and judged before any pixel is decoded;
EXIF orientation is applied; the first frame of an animation is taken; alpha is composited on
white; 16-bit greyscale is scaled to 8 bits; CMYK and palettes are converted; truncated data is
refused.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vision_sae.errors import ImageTooLargeError, InvalidImageError

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_BYTES = 16 * 2**20
MAX_PIXELS = 50_000_000


def decode_image(
    data: bytes, *, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Decode a picture to RGB.

    Raises `InvalidImageError` for anything that is not a whole JPEG, PNG or WebP, and
    `ImageTooLargeError` above ``max_bytes`` or ``max_pixels`` (before decoding).
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
    with warnings.catch_warnings():
        # Our own pixel limit stands below; Pillow's warning must not pass for a refusal.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image = _open(data, max_pixels)
        try:
            image.load()
            upright = ImageOps.exif_transpose(image)  # parses EXIF, which may be broken too
        except (OSError, SyntaxError, ValueError, EOFError) as error:
            raise InvalidImageError(
                f"the image is broken or truncated ({error}); send the whole file", field="image"
            ) from error
    return _to_rgb(upright)


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """Read the header alone, and judge it."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise InvalidImageError(
            "the bytes are not a JPEG, PNG or WebP picture; convert the file to one of these",
            field="image",
        ) from error
    except Image.DecompressionBombError as error:
        raise ImageTooLargeError(f"{error}; send a smaller picture", field="image") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise InvalidImageError(
            f"the header of the image is broken ({error}); send the whole file", field="image"
        ) from error
    width, height = image.size
    if width * height > max_pixels:
        raise ImageTooLargeError(
            f"the image has {width} x {height} = {width * height} pixels, "
            f"the limit is {max_pixels}; send a smaller one",
            field="image",
        )
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit greyscale; convert("RGB") would clip at 255
        grey = np.asarray(image).astype(np.uint32) // 257
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")

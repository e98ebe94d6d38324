"""PNG features that Pillow lacks: large text chunks, and transparent values of 2, 4 and 16 bits."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_NOTES = frozenset({b"tEXt", b"zTXt", b"iTXt", b"iCCP"})
_ORIENTATION = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")
"""Keywords of the text chunks that may hold a picture's orientation."""
_LARGEST_NOTE = 2**18
"""Text chunks of this many bytes or more, uncompressed, are dropped."""
_DEPTH, _COLOUR_TYPE = 24, 25
"""Offsets of the bit depth and the colour type in a file."""


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(type, start, end) of each complete chunk, including its length and checksum."""
    start = len(_SIGNATURE)
    while start + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, start)
        if start + 12 + length > len(data):
            return
        yield kind, start, start + 12 + length
        start += 12 + length


def _small(kind: bytes, note: bytes) -> bool:
    """Whether a text chunk is small, also after decompression."""
    text = note.partition(b"\0")[2]
    if kind == b"zTXt":
        text = _unpacked(text[1:])
    elif kind == b"iTXt" and text[:1] == b"\1":
        text = _unpacked(text[2:].split(b"\0", 2)[-1])
    return max(len(note), len(text)) < _LARGEST_NOTE


def _unpacked(text: bytes) -> bytes:
    """The first `_LARGEST_NOTE` bytes of a compressed text; empty when the data is broken."""
    try:
        return zlib.decompressobj().decompress(text, _LARGEST_NOTE)
    except zlib.error:
        return b""


def without_notes(data: bytes) -> bytes:
    """A PNG without its text chunks and its colour profile, which nothing here reads. Pillow
    refuses a picture with large ones, and takes a text called "transparency" for the value.

    Small chunks that may hold the orientation are kept. Bytes that are no PNG are returned as is.
    """
    if not data.startswith(_SIGNATURE):
        return data
    kept, end = [_SIGNATURE], len(_SIGNATURE)
    for kind, start, end in _chunks(data):
        note = data[start + 8 : end - 4] if kind in _NOTES else b""
        if kind not in _NOTES or (note.startswith(_ORIENTATION) and _small(kind, note)):
            kept.append(data[start:end])
    return b"".join((*kept, data[end:]))


def transparent(image: Image.Image, data: bytes) -> NDArray[np.bool_] | None:
    """The pixels (height, width) of a grey or RGB PNG that have the transparent value; None for
    other pictures. ``image`` is the loaded picture, ``data`` the content of its file.

    Pillow itself compares the value with samples that it has already scaled to eight bits.
    """
    value = image.info.get("transparency")
    if image.format != "PNG" or value is None or data[_COLOUR_TYPE] not in (0, 2):
        return None
    depth, samples = data[_DEPTH], np.asarray(image)
    if depth == 1:
        return np.asarray(samples == bool(value))
    value = np.array(value) & (2**depth - 1)
    if image.mode != "RGB":
        scale = 255 // (2**depth - 1) if depth < 8 else 1
        return np.asarray(samples == value * scale)
    if depth == 16:
        samples = samples.astype(np.uint16) << 8 | _low_bytes(data)
    return np.asarray((samples == value).all(axis=2))


def _low_bytes(data: bytes) -> NDArray[np.uint8]:
    """The lower byte of every sample (height, width, 3) of a 16-bit RGB PNG. Pillow keeps the upper
    byte of each sample; told that the byte order is reversed, it keeps the lower one."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        image.tile = [tile._replace(args="RGB;16L") for tile in image.tile]
        return np.array(image)

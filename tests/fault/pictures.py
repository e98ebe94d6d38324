"""Files that claim to be pictures: real ones of every kind, damaged, with EXIF data of any make."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from tests.worlds.tiny import noise_image
from vision_sae.activations.store import ActivationStore

_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "I", "I;16", "F", "CMYK", "YCbCr", "HSV", "LAB")
_EXIF_TYPES = range(14)
_EXIF_TAGS = (0x0112, 0x010E, 0x8769, 0x8825, 0xA005, 0x0131, 0x9286, 0x011A, 0x0201, 0x927C)


def originals() -> dict[str, bytes]:
    """{suffix and a name: bytes}, of every mode that JPEG, PNG and WebP keep."""
    found = {}
    for kind, suffix in (("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")):
        for mode in _MODES:
            for options in ({}, {"progressive": True}, {"lossless": True}, {"save_all": True}):
                buffer = io.BytesIO()
                try:
                    noise_image(24, 17).convert(mode).save(buffer, kind, **options)
                except (OSError, ValueError, KeyError):
                    continue  # a mode that the format does not keep
                found[f"{mode.replace(';', '')}-{'-'.join(options)}.{suffix}"] = buffer.getvalue()
    for suffix, kind in (("bmp", "BMP"), ("gif", "GIF"), ("tiff", "TIFF")):
        buffer = io.BytesIO()
        noise_image(24, 17).save(buffer, kind)
        found[f"{suffix}-called.png"] = buffer.getvalue()
    return found


def exif(source: random.Random) -> bytes:
    """A TIFF block of a few entries whose tags, types, counts and values are anything."""
    order = source.choice("<>")
    entries = []
    for _ in range(source.choice((1, 1, 2, 5))):
        tag = source.choice((*_EXIF_TAGS, source.randrange(65536)))
        count = source.choice((0, 1, 1, 2, 3, 100, 2**16, 2**31, 2**32 - 1))
        value = source.choice((0, 1, 6, 8, 26, 2**31, source.randrange(2**32)))
        kind = source.choice(_EXIF_TYPES)
        entries.append(struct.pack(f"{order}HHLL", tag, kind, count, value))
    following = source.choice((0, 0, 8, 2**31))
    directory = struct.pack(f"{order}H", len(entries)) + b"".join(entries)
    header = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}L", 8)
    return header + directory + struct.pack(f"{order}L", following) + source.randbytes(64)


def with_exif(name: str, data: bytes, block: bytes) -> bytes:
    """The picture with this block in it; the same bytes where a file has no place for one."""
    if name.endswith(".jpg"):
        body = b"Exif\0\0" + block
        return data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[2:]
    if name.endswith(".png") and data.startswith(b"\x89PNG"):
        chunk = b"eXIf" + block
        stored = struct.pack(">L", len(block)) + chunk + struct.pack(">L", zlib.crc32(chunk))
        return data[:33] + stored + data[33:]
    if name.endswith(".webp"):
        buffer = io.BytesIO()
        Image.open(io.BytesIO(data)).save(buffer, "WEBP", exif=b"Exif\0\0" + block)
        return buffer.getvalue()
    return data


def damaged(data: bytes, source: random.Random) -> bytes:
    """The bytes with some changed, cut off, put in, or taken out; PNG's checksums made to agree."""
    made = bytearray(data)
    for _ in range(source.choice((1, 1, 2, 8))):
        at = source.randrange(len(made) + 1)
        match source.randrange(5):
            case 0:
                made[at : at + 1] = bytes([source.randrange(256)])
            case 1:
                del made[max(at, 9) :]
            case 2:
                made[at:at] = source.randbytes(source.randrange(1, 40))
            case 3:
                del made[at : at + source.randrange(1, 40)]
            case _:
                made[at : at + 4] = source.choice((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"))
    return _checked(bytes(made)) if source.random() < 0.7 else bytes(made)


def _checked(data: bytes) -> bytes:
    """A PNG with right checksums, so that damage reaches what is behind them."""
    if not data.startswith(b"\x89PNG"):
        return data
    made, at = bytearray(data[:8]), 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">L", data, at)
        end = at + 8 + length
        if end + 4 > len(data):
            break
        made += data[at:end] + struct.pack(">L", zlib.crc32(data[at + 4 : end]))
        at = end + 4
    return bytes(made + data[at:])


def write_files(folder: Path, count: int, seed: int = 0) -> int:
    """Write so many files; gives the number written."""
    source, kinds = random.Random(seed), sorted(originals().items())
    folder.mkdir(parents=True)
    for i in range(count):
        name, data = kinds[i % len(kinds)]
        if source.random() < 0.4:
            data = with_exif(name, data, exif(source))
        if source.random() < 0.8:
            data = damaged(data, source)
        (folder / f"{i:05}-{name}").write_bytes(data)
    return count


def accounted(store: ActivationStore) -> Iterator[str]:
    """The names of pictures that a store holds, and of those that it lists as skipped."""
    yield from (record.id for record in store.images)
    yield from (skipped.id for skipped in store.skipped)

"""Damaged files of every format, and odd EXIF: decoded to RGB or refused, nothing else."""

from __future__ import annotations

import io
import struct
import zlib
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from tests.worlds.tiny import noise_image
from vision_sae.errors import InvalidInputError
from vision_sae.pictures.decode import decode_image

MAX_PIXELS = 10_000


def sample(kind: str, image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decode_or_refuse(data: bytes) -> None:
    with suppress(InvalidInputError):
        image = decode_image(data, max_pixels=MAX_PIXELS)
        assert (image.mode, type(image)) == ("RGB", Image.Image)
        assert 0 < image.width * image.height <= MAX_PIXELS


NOISE = noise_image(24, 17)
FRAMES = {"save_all": True, "append_images": [noise_image(24, 17, 1)]}
EXIF = Image.Exif()
EXIF[0x0112] = 6
EXIF[0x010E] = "a description"
FEW = NOISE.convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
READ = [
    sample("JPEG", NOISE, exif=EXIF, icc_profile=bytes(100), comment=b"words"),
    sample("JPEG", NOISE, progressive=True),
    sample("JPEG", NOISE.convert("L")),
    sample("JPEG", NOISE.convert("CMYK")),
    sample("MPO", NOISE, **FRAMES),
    sample("PNG", NOISE, exif=EXIF, icc_profile=bytes(100)),
    sample("PNG", NOISE, transparency=(1, 2, 3)),
    sample("PNG", NOISE.convert("P"), transparency=3),
    sample("PNG", FEW, bits=2),
    sample("PNG", NOISE.convert("I;16"), transparency=7),
    sample("PNG", NOISE.convert("LA")),
    sample("PNG", NOISE.convert("RGBA")),
    sample("PNG", NOISE.convert("1"), transparency=0),
    sample("PNG", NOISE, **FRAMES),
    sample("WEBP", NOISE, exif=EXIF),
    sample("WEBP", NOISE.convert("RGBA"), lossless=True),
    sample("WEBP", NOISE, **FRAMES),
]
REFUSED = [
    sample(kind, NOISE)
    for kind in (
        *("BMP", "DDS", "GIF", "ICO", "PCX", "PPM", "SGI", "TGA", "TIFF"),
        *(("AVIF",) if features.check("avif") else ()),
        *(("JPEG2000",) if features.check("jpg_2000") else ()),
    )
]
Damage = st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=8)
Cut = st.one_of(st.none(), st.integers(0, 4000))


@pytest.mark.parametrize("data", READ, ids=range(len(READ)))
def test_the_whole_files_are_read(data: bytes) -> None:
    assert sorted(decode_image(data).size) == [17, 24]


@settings(max_examples=600, deadline=None)
@given(st.sampled_from(READ + REFUSED), Damage, Cut)
def test_damaged_files_are_decoded_or_refused_and_nothing_else(
    data: bytes, damage: list[tuple[int, int]], length: int | None
) -> None:
    changed = bytearray(data)
    for position, value in damage:
        changed[position % len(changed)] = value
    decode_or_refuse(bytes(changed[:length]))


def with_sound_checksums(data: bytes) -> bytes:
    """A PNG the checksums of which are right again, so that its chunks are looked into."""
    whole, start = bytearray(data[:8]), 8
    while start + 12 <= len(data):
        end = start + 8 + int.from_bytes(data[start : start + 4], "big")
        body = data[start + 4 : end]
        whole += struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
        start = end + 4
    return bytes(whole)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from([d for d in READ if d.startswith(b"\x89PNG")]), Damage)
def test_damage_behind_a_sound_checksum(data: bytes, damage: list[tuple[int, int]]) -> None:
    changed = bytearray(data)
    for position, value in damage:
        changed[8 + position % (len(changed) - 8)] = value
    decode_or_refuse(with_sound_checksums(bytes(changed)))


TAGS = (0x0112, 0x010E, 0x011A, 0x0132, 0x8769, 0x8825, 0xA005, 0x9286, 0x927C, 0x00FE, 0xFFFF)
Entry = st.tuples(
    st.sampled_from(TAGS),
    st.integers(0, 20),  # the types are 1 to 13, in BigTIFF 16 to 18; others are none
    st.one_of(st.integers(0, 9), st.sampled_from([255, 65535, 2**31, 2**32 - 1])),
    st.one_of(st.integers(0, 300), st.sampled_from([2**31, 2**32 - 1])),
)


def exif(order: str, entries: list[tuple[int, int, int, int]], rest: bytes) -> bytes:
    """An EXIF block of (tag, type, count, value or offset) entries."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    body = b"".join(struct.pack(f"{order}HHII", *entry) for entry in entries)
    return b"Exif\0\0" + mark + struct.pack(f"{order}IH", 8, len(entries)) + body + rest


@settings(max_examples=600, deadline=None)
@given(
    st.sampled_from(["JPEG", "PNG", "WEBP"]),
    st.sampled_from("<>"),
    st.lists(Entry, min_size=1, max_size=6),
    st.binary(max_size=300),
)
def test_exif_of_every_type_and_count(
    kind: str, order: str, entries: list[tuple[int, int, int, int]], rest: bytes
) -> None:
    decode_or_refuse(sample(kind, NOISE, exif=exif(order, entries, rest)))


@pytest.mark.parametrize("type_", range(21))
def test_orientation_of_every_type_and_count(type_: int) -> None:
    for order in "<>":
        for count in (0, 1, 2, 5, 2**32 - 1):
            block = exif(order, [(0x0112, type_, count, 6)], bytes(20))
            decode_or_refuse(sample("JPEG", NOISE, exif=block))

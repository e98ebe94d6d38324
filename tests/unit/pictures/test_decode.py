"""The table of decoding rules, one test a rule."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.worlds.tiny import noise_image
from vision_sae.errors import ImageTooLargeError, InvalidImageError
from vision_sae.pictures.decode import decode_image


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(data: bytes) -> list[list[list[int]]]:
    return np.asarray(decode_image(data)).tolist()


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_lossless_pixels_come_back(kind: str) -> None:
    image = noise_image(7, 5)
    assert np.array_equal(decode_image(encoded(image, kind, lossless=True)), image)


def test_jpeg_comes_back_nearly() -> None:
    image = Image.new("RGB", (16, 16), (200, 30, 90))
    out = np.asarray(decode_image(encoded(image, "JPEG", quality=95))).astype(int)
    assert abs(out - [200, 30, 90]).max() <= 4


@pytest.mark.parametrize(
    ("orientation", "corner"),
    # The stored picture has one white pixel at its top left. Where it belongs (EXIF 2.3, table 6):
    [
        (1, (0, 0)),
        (2, (2, 0)),
        (3, (2, 1)),
        (4, (0, 1)),
        (5, (0, 0)),
        (6, (1, 0)),
        (7, (1, 2)),
        (8, (0, 2)),
    ],
)
def test_exif_orientation_is_applied(orientation: int, corner: tuple[int, int]) -> None:
    image = Image.new("RGB", (3, 2))
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = decode_image(encoded(image, "PNG", exif=exif))
    assert out.size == ((3, 2) if orientation < 5 else (2, 3))
    assert out.getpixel(corner) == (255, 255, 255)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"]
)
def test_broken_exif_does_not_cost_the_picture(exif: bytes) -> None:
    data = encoded(Image.new("RGB", (8, 8), "white"), "JPEG", exif=exif)
    assert decode_image(data).size == (8, 8)


def test_cmyk_jpeg_is_converted() -> None:
    white = encoded(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG", quality=95)
    assert np.asarray(decode_image(white)).min() >= 250


def test_sixteen_bit_grey_is_scaled_to_eight() -> None:
    # 65,535 = 257 * 255: a step of eight bits is 257 of sixteen.
    grey = np.array([[0, 256, 257, 128 * 257, 65535]], dtype=np.uint16)
    data = encoded(Image.fromarray(grey), "PNG")
    assert pixels(data) == [[[0] * 3, [0] * 3, [1] * 3, [128] * 3, [255] * 3]]


def test_eight_bit_grey_is_spread_over_the_channels() -> None:
    data = encoded(Image.fromarray(np.array([[0, 7, 255]], dtype=np.uint8)), "PNG")
    assert pixels(data) == [[[0] * 3, [7] * 3, [255] * 3]]


def test_alpha_is_composited_on_white() -> None:
    rgba = np.array([[[100, 0, 0, 255], [100, 0, 0, 0], [0, 0, 0, 51]]], dtype=np.uint8)
    # The last: 51 / 255 = 0.2 black on white = 0.8 * 255 = 204.
    assert pixels(encoded(Image.fromarray(rgba), "PNG")) == [[[100, 0, 0], [255] * 3, [204] * 3]]


def test_grey_with_alpha_is_composited_on_white() -> None:
    la = np.array([[[10, 255], [10, 0]]], dtype=np.uint8)
    assert pixels(encoded(Image.fromarray(la), "PNG")) == [[[10] * 3, [255] * 3]]


def test_palette_is_looked_up() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    assert pixels(encoded(image, "PNG")) == [[[10, 20, 30], [40, 50, 60]]]


def test_transparent_palette_entry_is_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    data = encoded(image, "PNG", transparency=1)
    assert pixels(data) == [[[10, 20, 30], [255, 255, 255]]]


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_of(depth: int, colour_type: int, row: bytes, width: int, *chunks: bytes) -> bytes:
    """One row of pixels, with ``chunks`` before them."""
    head = struct.pack(">IIBBBBB", width, 1, depth, colour_type, 0, 0, 0)
    pixels = zlib.compress(b"\0" + row)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            png_chunk(b"IHDR", head),
            *chunks,
            png_chunk(b"IDAT", pixels),
            png_chunk(b"IEND", b""),
        )
    )


GREY, RGB = 0, 2


@pytest.mark.parametrize(
    ("depth", "row", "transparent", "grey"),
    [
        # 40000 // 257 = 155.
        (16, struct.pack(">HH", 0, 40000), 0, [255, 155]),
        (16, struct.pack(">HH", 0, 40000), 40000, [0, 255]),
        (16, struct.pack(">HH", 40001, 40000), 40001, [255, 155]),  # equal in eight bits
        (8, bytes([0, 100]), 0, [255, 100]),
        (4, bytes([0x5A]), 5, [255, 170]),  # 10 of 15 is 170 of 255
        (2, bytes([0b01100000]), 1, [255, 170]),  # 2 of 3
        (1, bytes([0b10000000]), 1, [255, 0]),
        (1, bytes([0b10000000]), 0, [255, 255]),
        (2, bytes([0b01100000]), 0b101, [255, 170]),  # only the bits that a sample has count
    ],
)
def test_transparent_value_of_grey_is_white_at_any_depth(
    depth: int, row: bytes, transparent: int, grey: list[int]
) -> None:
    value = png_chunk(b"tRNS", struct.pack(">H", transparent))
    assert [pixel[0] for pixel in pixels(png_of(depth, GREY, row, 2, value))[0]] == grey


def test_transparent_value_of_rgb_is_compared_in_all_sixteen_bits() -> None:
    # The pixels differ in their lowest bit; 0x1234 is 0x12 = 18 in eight bits.
    row = struct.pack(">6H", 0x1234, 0, 0xFFFF, 0x1235, 0, 0xFFFF)
    value = png_chunk(b"tRNS", struct.pack(">3H", 0x1234, 0, 0xFFFF))
    assert pixels(png_of(16, RGB, row, 2, value)) == [[[255] * 3, [18, 0, 255]]]


def test_transparent_value_of_rgb_in_eight_bits() -> None:
    value = png_chunk(b"tRNS", struct.pack(">3H", 1, 2, 3))
    data = png_of(8, RGB, bytes([1, 2, 3, 1, 2, 4]), 2, value)
    assert pixels(data) == [[[255] * 3, [1, 2, 4]]]


def noted(kind: bytes, note: bytes) -> bytes:
    return png_of(8, GREY, bytes([7]), 1, png_chunk(kind, note))


LARGE = bytes(5_000_000)


@pytest.mark.parametrize(
    ("kind", "note"),
    [
        (b"tEXt", b"workflow\0" + LARGE.replace(b"\0", b"x")),
        (b"zTXt", b"workflow\0\0" + zlib.compress(LARGE)),
        (b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(LARGE)),
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(LARGE)),
        (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(LARGE)),
        (b"iCCP", b"profile\0\0" + zlib.compress(LARGE)),
        (b"iCCP", b"profile\0\7broken"),
        (b"zTXt", b"workflow\0\7broken"),
        (b"tEXt", b"transparency\0" + b"7"),  # a name that Pillow gives to what it read itself
        (b"tEXt", b"interlace\0" + b"1"),
    ],
    ids=lambda value: repr(value[:25]),
)
def test_texts_and_profiles_of_any_size_do_not_cost_the_picture(kind: bytes, note: bytes) -> None:
    assert pixels(noted(kind, note)) == [[[7] * 3]]


def test_many_texts_that_may_say_which_way_up_are_refused_before_memory_ends() -> None:
    text = png_chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(bytes(200_000)))
    with pytest.raises(InvalidImageError):
        decode_image(png_of(8, GREY, bytes([7]), 1, *[text] * 1000))


def test_orientation_in_a_text_is_applied() -> None:
    xmp = b"XML:com.adobe.xmp\0\0\0\0\0" + b'<x tiff:Orientation="6"/>'
    data = png_of(8, GREY, bytes([0, 255]), 2, png_chunk(b"iTXt", xmp))
    assert pixels(data) == [[[0] * 3], [[255] * 3]]  # turned right: the left end is on top


def test_odd_exif_beside_the_orientation_does_not_cost_the_picture() -> None:
    # 0x010E, a text, is of type SHORT; 0x011A is a rational over zero.
    entries = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    entries += struct.pack("<HHII", 0x010E, 3, 2, 0x00020001)
    entries += struct.pack("<HHII", 0x011A, 5, 1, 100)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 3) + entries + bytes(200)
    data = encoded(Image.new("RGB", (3, 2)), "JPEG", exif=exif)
    assert decode_image(data).size == (2, 3)


@pytest.mark.parametrize("kind", ["WEBP", "PNG"])
def test_first_frame_of_an_animation_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    assert decode_image(data).getpixel((0, 0)) == (255, 0, 0)


def test_picture_of_several_in_a_jpeg_is_the_first() -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("white", "black")]
    data = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert np.asarray(decode_image(data)).min() >= 250


@pytest.mark.parametrize("error", [SyntaxError, OverflowError, KeyError, struct.error, MemoryError])
def test_whatever_the_decoder_throws_is_a_refusal(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encoded(noise_image(8, 8), "PNG")

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises((InvalidImageError, ImageTooLargeError)) as caught:
        decode_image(data)
    assert error.__name__ not in str(caught.value)


@pytest.mark.parametrize("kind", ["AVIF", "GIF", "TIFF", "BMP", "ICO", "PPM"])
def test_other_formats_are_refused_and_told_what_to_send(kind: str) -> None:
    with pytest.raises(InvalidImageError, match="JPEG, PNG or WebP"):
        decode_image(encoded(Image.new("RGB", (16, 16)), kind))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_file_is_refused(kind: str, share: float) -> None:
    data = encoded(noise_image(64, 64), kind)
    with pytest.raises(InvalidImageError):
        decode_image(data[: int(len(data) * share)])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_bare_signature_is_refused(kind: str) -> None:
    with pytest.raises(InvalidImageError):
        decode_image(encoded(noise_image(8, 8), kind)[:12])


def test_empty_bytes_are_refused() -> None:
    with pytest.raises(InvalidImageError, match="empty"):
        decode_image(b"")


@pytest.mark.parametrize("data", [b"hello world", b"<svg/>", b"%PDF-1.7", bytes(1000)])
def test_bytes_that_are_no_picture_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidImageError, match="not a JPEG, PNG or WebP"):
        decode_image(data)


def png_bomb(width: int, height: int, *, rows: int = 0) -> bytes:
    """A one-colour grey PNG, written without ever holding its pixels; cut short with ``rows``."""

    deflate = zlib.compressobj(9)
    row = bytes(1 + width)
    body = b"".join(deflate.compress(row) for _ in range(rows or height)) + deflate.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", body)
        + png_chunk(b"IEND", b"")
    )


def test_bomb_of_169_megapixels_is_refused_without_decoding() -> None:
    bomb = png_bomb(13000, 13000)
    assert len(bomb) < 2**20  # well under the limit on bytes
    tracemalloc.start()
    with pytest.raises(ImageTooLargeError, match="13000 x 13000"):
        decode_image(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * 2**20


def test_bomb_beyond_pillows_own_limit_is_refused_the_same_way() -> None:
    with pytest.raises(ImageTooLargeError):
        decode_image(png_bomb(60000, 60000, rows=1))


def test_picture_at_the_pixel_limit_is_accepted() -> None:
    assert decode_image(encoded(noise_image(10, 10), "PNG"), max_pixels=100).size == (10, 10)


def test_picture_over_the_pixel_limit_is_refused() -> None:
    with pytest.raises(ImageTooLargeError, match="the limit is 99"):
        decode_image(encoded(noise_image(10, 10), "PNG"), max_pixels=99)


def test_more_bytes_than_the_limit_are_refused() -> None:
    data = encoded(noise_image(10, 10), "PNG")
    with pytest.raises(ImageTooLargeError, match=f"{len(data)} bytes"):
        decode_image(data, max_bytes=len(data) - 1)


def test_every_refusal_names_the_field() -> None:
    with pytest.raises(InvalidImageError) as caught:
        decode_image(b"")
    assert caught.value.field == "image"


def test_broken_exif_is_refused() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(noise_image(10, 10), "WEBP", exif=exif.tobytes())
    assert data.count(b"MM\0*") == 1
    with pytest.raises(InvalidImageError, match="broken"):
        decode_image(data.replace(b"MM\0*", b"\0M\0*"))

from __future__ import annotations

import io
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.worlds import noise_image
from vision_sae.errors import InvalidInputError
from vision_sae.pictures.decode import decode_image


def sample(kind: str, image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


NOISE = noise_image(24, 17)
EXIF = Image.Exif()
EXIF[0x0112] = 6
EXIF[0x010E] = "a description"
SAMPLES = [
    sample("JPEG", NOISE, exif=EXIF),
    sample("JPEG", NOISE, progressive=True),
    sample("JPEG", NOISE.convert("CMYK")),
    sample("PNG", NOISE, exif=EXIF),
    sample("PNG", NOISE.convert("P"), transparency=3),
    sample("PNG", NOISE.convert("I;16")),
    sample("WEBP", NOISE, exif=EXIF),
    sample("WEBP", NOISE, save_all=True, append_images=[noise_image(24, 17, 1)]),
]


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's own words on broken EXIF
@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(SAMPLES),
    st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), min_size=1, max_size=8),
    st.one_of(st.none(), st.integers(1, 4000)),
)
def test_damaged_files_are_decoded_or_refused_and_nothing_else(
    data: bytes, damage: list[tuple[int, int]], length: int | None
) -> None:
    changed = bytearray(data)
    for position, value in damage:
        changed[position % len(changed)] = value
    with suppress(InvalidInputError):
        image = decode_image(bytes(changed[:length]), max_pixels=10_000)
        assert image.mode == "RGB"

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.worlds.tiny import noise_image, tiny_model
from vision_sae.activations import decoding
from vision_sae.activations.decoding import (
    Decoded,
    batches_ahead,
    decode,
    decode_batches,
)
from vision_sae.errors import ImageTooLargeError, InvalidImageError
from vision_sae.pictures.folder import Picture
from vision_sae.pictures.reading import Skipped


def picture(folder: Path, width: int, height: int) -> Picture:
    noise_image(width, height).save(folder / "a.png")
    return Picture("a.png", folder / "a.png", "a caption", ("tag",), "photo.jpg")


def test_decoded_picture_keeps_its_own_size_and_words(tmp_path: Path) -> None:
    found = decode(picture(tmp_path, 50, 34), tiny_model(), 16)
    assert isinstance(found, Decoded)
    assert found.record == ("a.png", 50, 34, "a caption", ("tag",), "photo.jpg")


def test_pixels_are_those_of_the_model_at_full_resolution(tmp_path: Path) -> None:
    model, source = tiny_model(), picture(tmp_path, 50, 34)
    found = decode(source, model, 16)
    assert isinstance(found, Decoded)
    assert torch.equal(found.pixels, model.preprocess(source.load()))


def test_file_that_is_gone_is_refused_with_the_reason(tmp_path: Path) -> None:
    found = decode(Picture("b.png", tmp_path / "b.png"), tiny_model(), 16)
    assert found == Skipped("b.png", "No such file or directory", "unreadable")


BATCHES: Any = [["a", "b"], ["c"], ["d", "e"]]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What has been decoded so far, by a decoder that returns its argument in capitals."""
    names: list[str] = []

    def record(name: str, *_: object) -> str:
        names.append(name)
        return name.upper()

    monkeypatch.setattr(decoding, "decode", record)
    return names


@pytest.mark.parametrize("ahead", [0, 1, 5])
def test_batches_come_whole_and_in_order(started: list[str], ahead: int) -> None:
    with ThreadPoolExecutor(3) as pool:
        found = list(decode_batches(pool, tiny_model(), BATCHES, 16, ahead=ahead))
    assert found == [["A", "B"], ["C"], ["D", "E"]]


@pytest.mark.parametrize(("ahead", "decoded"), [(0, "ab"), (1, "abc"), (2, "abcde")])
def test_no_more_is_decoded_than_asked_for_and_the_batches_ahead(
    started: list[str], ahead: int, decoded: str
) -> None:
    with ThreadPoolExecutor(3) as pool:
        next(decode_batches(pool, tiny_model(), BATCHES, 16, ahead=ahead))
    assert sorted(started) == list(decoded)


@pytest.mark.parametrize(("device", "ahead"), [("cpu", 0), ("cuda:1", 2)])
def test_threads_decode_beside_the_model_unless_it_needs_their_cores(
    device: str, ahead: int
) -> None:
    model: Any = SimpleNamespace(device=torch.device(device))
    assert batches_ahead(model) == ahead


@pytest.mark.parametrize("error", [KeyError(274), OverflowError("too far"), MemoryError()])
def test_whatever_is_thrown_while_an_upload_is_shrunk_is_a_refusal(error: Exception) -> None:
    from vision_sae_server.state import State

    async def run(work: Callable[[], Any]) -> Any:
        return work()

    def fail(_image: object) -> None:
        raise error

    limits = SimpleNamespace(max_image_bytes=10**6, max_image_pixels=10**6)
    state: Any = SimpleNamespace(config=limits, decoding=SimpleNamespace(run=run))
    model: Any = SimpleNamespace(
        model=SimpleNamespace(preprocess=fail, preprocessing=tiny_model().preprocessing)
    )
    png = io.BytesIO()
    noise_image(8, 8).save(png, "PNG")
    with pytest.raises((InvalidImageError, ImageTooLargeError)):
        asyncio.run(State.picture(state, png.getvalue(), model))

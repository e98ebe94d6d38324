"""What the client makes of the values that it is given, before anything is sent."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image, ImageDraw
from typer.testing import CliRunner
from vision_sae_client import AsyncClient, Client, targets
from vision_sae_client.cli import app
from vision_sae_client.edits import edit
from vision_sae_client.errors import from_rpc_error
from vision_sae_client.images import image_bytes
from vision_sae_client.jobs import label_job
from vision_sae_client.requests.attribution import attribute
from vision_sae_client.requests.search import search_patches
from vision_sae_client.values import bearer, deadline

from tests.worlds import serving
from tests.worlds import wire as wire_world
from tests.worlds.wire import photograph
from vision_sae.errors import InvalidImageError, InvalidInputError, VisionSaeError
from vision_sae.pictures.decode import decode_image
from vision_sae.v1.ledger_pb2 import REFERENCE_CODE_MEAN

NOWHERE = "127.0.0.1:1"


def test_a_timeout_is_seconds_or_none() -> None:
    assert (deadline(2), deadline(float("inf")), deadline(1e300)) == (2.0, None, None)
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(InvalidInputError, match="above 0, or inf"):
            deadline(wrong)


@pytest.mark.parametrize(
    ("wrong", "field"),
    [({"timeout": 0}, "timeout"), ({"token": "é"}, "token"), ({"address": ""}, "address")],
)
async def test_both_clients_refuse_what_no_call_could_carry(wrong: Any, field: str) -> None:
    given = {"address": NOWHERE} | wrong
    for client in (Client, AsyncClient):
        with pytest.raises(InvalidInputError) as refused:
            client(given.pop("address", ""), **given)
        assert refused.value.field == field
        given = {"address": NOWHERE} | wrong


@pytest.mark.parametrize("token", ["é", "a\nb", "a\x7f"])
def test_a_token_is_ascii(token: str) -> None:
    with pytest.raises(InvalidInputError, match="a token is ASCII"):
        bearer(token)
    assert bearer("abc") == "Bearer abc"


def test_numpy_integers_are_integers(tmp_path: Path) -> None:
    one = np.int64(1)
    assert targets.class_logit(one) == targets.class_logit(1)
    assert targets.region_class((0, 0, 1, 1), one) == targets.region_class((0, 0, 1, 1), 1)
    picture = image_bytes(Image.new("RGB", (2, 2)))
    mean = np.int32(REFERENCE_CODE_MEAN)
    request = attribute(picture, ["a"], baseline=mean, top_k=np.int16(3))  # type: ignore[arg-type]
    assert request.baseline.reference == REFERENCE_CODE_MEAN
    assert request.top_k == 3
    job = label_job(dictionary="a", indices=np.arange(3), max_units=np.int64(2))  # type: ignore[arg-type]
    assert (list(job.features.indices), job.budget.max_units) == ([0, 1, 2], 2)


@pytest.mark.parametrize(
    ("build", "field"),
    [
        (lambda: targets.class_logit(-1), "target"),
        (lambda: targets.class_logit(2**31), "target"),
        (lambda: targets.parse("class:99999999999"), "target"),
        (lambda: targets.parse("class:" + "9" * 5000), "target"),
        (lambda: targets.parse(" vs ".join(["mean"] * 2000)), "target"),
        (lambda: targets.text("caf\udce9"), "words"),
        (lambda: search_patches(text="a", dictionary="b", count=2**40), "count"),
        (lambda: edit("dictionaries/a/features/1", "add", 1.0, first_step=2**40), "a number"),
        (lambda: label_job(dictionary="a", max_units=2**70), "max_units"),
        (lambda: label_job(dictionary="a", max_seconds=float("inf")), "max_seconds"),
        (lambda: label_job(dictionary="a", max_seconds=float("nan")), "max_seconds"),
        (lambda: label_job(dictionary="a", max_seconds=-1), "max_seconds"),
    ],
)
def test_what_no_message_can_hold_is_refused_by_name(build: Any, field: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        build()
    assert refused.value.field == field
    assert len(str(refused.value)) < 700


def jpeg(picture: Image.Image, **options: Any) -> bytes:
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=90, **options)
    return data.getvalue()


def test_a_picture_that_was_only_opened_is_sent_as_it_came() -> None:
    data = jpeg(photograph(64, 48))
    picture = Image.open(io.BytesIO(data))
    assert image_bytes(picture) == image_bytes(picture) == data
    ImageDraw.Draw(picture).point((0, 0), "red")  # decodes it, and changes it
    sent = image_bytes(picture)
    assert Image.open(io.BytesIO(sent)).format == "PNG"
    assert np.array_equal(np.asarray(decode_image(sent)), np.asarray(picture))


def test_a_format_that_servers_do_not_read_is_sent_as_png(tmp_path: Path) -> None:
    photograph(6, 5).save(tmp_path / "a.bmp")
    sent = image_bytes(Image.open(tmp_path / "a.bmp"))
    assert np.array_equal(np.asarray(decode_image(sent)), np.asarray(photograph(6, 5)))


def test_decoded_or_not_a_picture_is_sent_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    picture = Image.open(io.BytesIO(jpeg(photograph(64, 48), exif=exif)))
    as_it_came = decode_image(image_bytes(picture))
    picture.load()
    assert np.array_equal(np.asarray(decode_image(image_bytes(picture))), np.asarray(as_it_came))
    assert as_it_came.size == (48, 64)


def test_a_later_frame_is_not_the_file() -> None:
    data = io.BytesIO()
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(data, "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    picture = Image.open(io.BytesIO(data.getvalue()))
    picture.seek(1)
    assert decode_image(image_bytes(picture)).getpixel((0, 0)) == (0, 0, 255)


def test_a_picture_whose_png_is_more_than_a_server_takes_becomes_a_jpeg(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    picture = photograph(64, 48)
    picture.putalpha(255)
    monkeypatch.setattr("vision_sae_client.images._MOST_BYTES", 5000)
    sent = image_bytes(picture)
    assert Image.open(io.BytesIO(sent)).format == "JPEG"
    off = np.abs(np.asarray(decode_image(sent), int) - np.asarray(photograph(64, 48), int))
    assert off.mean() < 15  # of noise, whose colours JPEG keeps at half the size
    grey = Image.fromarray((np.arange(48 * 64).reshape(48, 64) * 20).astype(np.uint16))
    monkeypatch.setattr("vision_sae_client.images._MOST_BYTES", 1)
    assert Image.open(io.BytesIO(image_bytes(grey))).mode == "L"


@pytest.mark.parametrize("mode", [mode for mode in Image.MODES if mode not in ("1", "F")])
def test_every_mode_of_pil_arrives(mode: str) -> None:
    if mode.startswith("I"):
        picture = Image.new(mode, (3, 2), 200 if mode == "I" else 51_400)  # 200 times 257
    elif mode == "LAB":
        picture = Image.new(mode, (3, 2), (200, 128, 128))
    else:
        picture = Image.new("RGBA", (3, 2), (200, 200, 200, 255))
        for step in {"La": ("LA", "La"), "RGBa": ("RGBa",)}.get(mode, ("RGB", mode)):
            picture = picture.convert(step)
    assert picture.mode == mode
    arrived = np.asarray(decode_image(image_bytes(picture)), dtype=int)
    assert arrived.shape == (2, 3, 3)
    assert np.abs(arrived - 200).max() <= 8, arrived  # of 256 greys L* has 200 near by


def test_black_and_white_and_floats_arrive() -> None:
    assert decode_image(image_bytes(Image.new("1", (2, 2), 1))).getpixel((0, 0)) == (255,) * 3
    floats = Image.fromarray(np.full((2, 2), 99.6, np.float32))
    assert decode_image(image_bytes(floats)).getpixel((0, 0)) == (100,) * 3


@pytest.mark.parametrize(
    "wrong",
    [
        Image.new("RGB", (0, 0)),
        Image.fromarray(np.full((2, 2), np.nan, np.float32)),
        Image.fromarray(np.full((2, 2), 0.5, np.float32)),
        Image.fromarray(np.full((2, 2), -1, np.int32)),
        Image.open(io.BytesIO(jpeg(photograph(64, 48))[:900])).resize,
        "a\0b",
        3.5,
    ],
)
def test_what_is_no_picture_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidImageError):
        image_bytes(wrong)


class Failed(grpc.RpcError):
    """A call that ended with RESOURCE_EXHAUSTED."""

    def __init__(self, details: str) -> None:
        self._details = details

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.RESOURCE_EXHAUSTED

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> tuple[()]:
        return ()


@pytest.mark.parametrize(
    ("details", "advice"),
    [
        ("SERVER: Received message larger than max (28700000 vs. 20971520)", "as JPEG or WebP"),
        ("CLIENT: Received message larger than max (70000000 vs. 67108864)", "ask for less"),
        ("Sent message larger than max (30000000 vs. 20971520)", "ask for less"),
        ("too many pings", "try again"),
    ],
)
def test_what_to_do_when_something_is_too_much(details: str, advice: str) -> None:
    error = from_rpc_error(Failed(details), address=NOWHERE, timeout=None)
    assert advice in error.message
    assert details in error.message


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["info", "--timeout", "nan"], "timeout is"),
        (["info", "--token", "é"], "a token is ASCII"),
        (["info", "--address", ""], "the address is empty"),
        (["search", "--text", "caf\udce9"], "text is not UTF-8"),
        (["attribute", "x.png", "--target", "class:99999999999"], "a class is numbered"),
    ],
)
def test_what_is_typed_wrong_is_a_line_and_exit_2(arguments: list[str], said: str) -> None:
    options = ["--dictionary", "a"] if arguments[0] != "info" else []
    if "--address" not in arguments:
        options += ["--address", NOWHERE]
    done = CliRunner().invoke(app, [*arguments, *options])
    assert done.exit_code == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.exception is None or isinstance(done.exception, SystemExit | VisionSaeError)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with serving.address(wire_world.picture_state(tmp_path)) as where:
        photograph(24, 24).save(tmp_path / "p.png")
        options = ["--out", str(tmp_path / "file"), "--address", where]
        done = CliRunner().invoke(app, ["encode", str(tmp_path / "p.png"), *options])
    assert done.exit_code == 2
    assert f"{tmp_path / 'file'} is a file" in done.stderr

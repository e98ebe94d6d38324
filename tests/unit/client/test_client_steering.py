"""What `vision-sae-client steer` asks for, prints and writes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner
from vision_sae_client import AsyncClient, Client
from vision_sae_client.cli import app
from vision_sae_client.edits import edit, parse, transport
from vision_sae_client.errors import ClientError
from vision_sae_client.images import image_bytes
from vision_sae_client.steering import beside, read_recipe, write

from tests.worlds import generations, serving
from tests.worlds.labels import made
from vision_sae.bundles.read import Bundle
from vision_sae.errors import InvalidImageError, InvalidInputError, NotFoundError
from vision_sae.models.sdxl import SdxlModel
from vision_sae.tensors import from_proto, to_proto
from vision_sae.v1 import edit_pb2
from vision_sae.v1.generation_service_pb2 import GenerationResult, GenerationSettings
from vision_sae.v1.image_pb2 import IMAGE_FORMAT_PNG, EncodedImage

UP = "dictionaries/up/features"


@pytest.fixture(scope="module")
def address(tiny_generator: SdxlModel, generated_bundles: list[Bundle]) -> Iterator[str]:
    with serving.address(generations.state(tiny_generator, generated_bundles)) as where:
        yield where


def run(*words: str, out: Path, address: str) -> Any:
    return CliRunner().invoke(app, ["steer", *words, "--out", str(out), "--address", address])


def test_edits_in_words() -> None:
    assert parse(["812=4", f"{UP}/3=-1.5"], "add") == [("812", 4.0), (f"{UP}/3", -1.5)]
    assert parse(["7"], "ablate") == [("7", None)]
    for words, operation in ((["7"], "add"), (["7=x"], "scale"), (["7=1"], "ablate")):
        with pytest.raises(InvalidInputError, match=f"--{operation} takes FEATURE"):
            parse(words, operation)


def test_an_edit_as_a_message() -> None:
    made = edit(f"{UP}/3", "add", 4.0, box=(0, 0, 8, 8), first_step=1)
    assert made.where.region.box.x1 == 8
    assert made.when.steps.first == 1
    assert not made.when.steps.HasField("last")
    assert edit(f"{UP}/3", "ablate", own_map=True).where.HasField("own_map")
    assert edit(f"{UP}/3", "ablate") == edit_pb2.Edit(
        feature=f"{UP}/3", operation=edit_pb2.EDIT_OPERATION_ABLATE
    )
    with pytest.raises(InvalidInputError, match="use ablate, add"):
        edit(f"{UP}/3", "boost", 1.0)
    with pytest.raises(InvalidInputError, match="box"):
        edit(f"{UP}/3", "add", 1.0, box=(0, 0, 8, 8), own_map=True)


def test_an_edit_where_a_picture_is_white_and_as_strong_as_each_step_says() -> None:
    painted = Image.new("RGB", (4, 2))
    painted.putpixel((3, 1), (255, 255, 255))
    made = edit(f"{UP}/3", "add", 4.0, mask=painted, strengths=[0, 0.5])
    assert from_proto(made.where.region.mask).tolist() == [[0, 0, 0, 0], [0, 0, 0, 255]]
    assert list(made.when.schedule.factors) == [0, 0.5]
    with pytest.raises(InvalidInputError, match="a box or a mask"):
        edit(f"{UP}/3", "add", 1.0, box=(0, 0, 8, 8), mask=painted)
    with pytest.raises(InvalidInputError, match="strengths already say"):
        edit(f"{UP}/3", "add", 1.0, last_step=1, strengths=[1.0])
    with pytest.raises(InvalidImageError, match="not a JPEG, PNG or WebP picture"):
        edit(f"{UP}/3", "add", 1.0, mask=b"words")
    with pytest.raises(InvalidImageError, match="broken or truncated"):
        edit(f"{UP}/3", "add", 1.0, mask=image_bytes(Image.effect_noise((64, 64), 50))[:900])


def test_what_is_carried_over_has_the_same_region_in_both_pictures() -> None:
    carried = transport("up", "a ring", features=[7], box=(0, 0, 8, 8), strength=2, first_step=1)
    assert (carried.dictionary, carried.source_prompt) == ("dictionaries/up", "a ring")
    assert carried.source_region == carried.target_region
    assert carried.source_region.box.x1 == 8
    assert (list(carried.features), carried.strength, carried.when.steps.first) == ([7], 2, 1)
    plain = transport("up", "a ring")
    assert not plain.HasField("source_region")
    assert not plain.HasField("when")


def png(colour: str) -> EncodedImage:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 32), colour).save(buffer, "PNG")
    return EncodedImage(data=buffer.getvalue(), format=IMAGE_FORMAT_PNG)


def test_twin_picture_and_difference_side_by_side() -> None:
    moved = np.zeros((32, 64), dtype=np.float32)
    moved[:, 32:] = 0.25  # the most there is: shown white
    result = GenerationResult(picture=png("red"), twin=png("blue"), difference_map=to_proto(moved))
    sheet = beside(result)
    assert sheet.size == (3 * 256 + 8, 128)
    colours = [sheet.getpixel((x, 64)) for x in (10, 270, 530, 770)]
    assert colours == [(0, 0, 255), (255, 0, 0), (0, 0, 0), (255, 255, 255)]


def test_a_result_is_written_with_its_recipe(tmp_path: Path) -> None:
    result = GenerationResult(picture=png("red"))
    result.recipe.settings.prompt, result.recipe.settings.seed = "a star", 2**63
    assert [p.name for p in write(result, tmp_path)] == ["picture.png", "recipe.json"]
    assert read_recipe(tmp_path / "recipe.json") == result.recipe
    with pytest.raises(NotFoundError):
        read_recipe(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text('{"settings": 3}')
    with pytest.raises(InvalidInputError, match="no recipe"):
        read_recipe(tmp_path / "bad.json")


def test_steer_and_make_the_picture_again(address: str, tmp_path: Path) -> None:
    words = ["a red star", "--add", f"{UP}/3=60", "--ablate", "5", "--dictionary", "down"]
    more = ["--steps", "2", "--seed", "4", "--box", "0,0,32,64"]
    first = run(*words, *more, out=tmp_path / "one", address=address)
    assert first.exit_code == 0, first.output
    assert "inside of the region" in first.output
    written = sorted(p.name for p in (tmp_path / "one").iterdir())
    assert written == ["beside.png", "picture.png", "recipe.json", "twin.png"]
    recipe = read_recipe(tmp_path / "one" / "recipe.json")
    assert [e.feature for e in recipe.settings.edits] == [
        f"{UP}/3",
        "dictionaries/down/features/5",
    ]
    again = run(
        "--recipe", str(tmp_path / "one" / "recipe.json"), out=tmp_path / "two", address=address
    )
    assert "the same bits as before" in again.output
    one, two = ((tmp_path / d / "picture.png").read_bytes() for d in ("one", "two"))
    assert one == two


def test_steer_by_what_another_prompt_has_where_a_mask_is_white(
    address: str, tmp_path: Path
) -> None:
    mask = Image.new("L", (64, 64))
    mask.paste(255, (32, 0, 64, 64))
    mask.save(tmp_path / "mask.png")
    words = ["a red star", "--carry", "a ring", "--carry-strength", "30", "--dictionary", "up"]
    more = ["--mask", str(tmp_path / "mask.png"), "--seed", "4", "--steps", "2"]
    found = run(*words, *more, "--strengths", "0,1", out=tmp_path / "one", address=address)
    assert found.exit_code == 0, found.output
    (carried,) = read_recipe(tmp_path / "one" / "recipe.json").settings.transports
    assert (carried.source_prompt, carried.strength) == ("a ring", 30)
    assert list(carried.when.schedule.factors) == [0, 1]
    picture, twin = (
        np.asarray(Image.open(tmp_path / "one" / f"{n}.png")) for n in ("picture", "twin")
    )
    assert (picture != twin).any()
    still = run(*words, *more, "--strengths", "0", out=tmp_path / "two", address=address)
    assert still.exit_code == 0, still.output
    picture, twin = (
        np.asarray(Image.open(tmp_path / "two" / f"{n}.png")) for n in ("picture", "twin")
    )
    assert (picture == twin).all()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--strengths", "0,1"], "say where and when"),
        (["--last-step", "0"], "say where and when"),
        (["--add", "3=1", "--strengths", "much"], "are no numbers"),
        (["--recipe", "r.json", "--carry", "a ring"], "a recipe holds"),
    ],
)
def test_words_that_say_nothing_to_do_are_refused(
    words: list[str], said: str, address: str, tmp_path: Path
) -> None:
    found = run(*words, out=tmp_path, address=address)
    assert found.exit_code == 2
    assert said in " ".join(found.output.split())


def test_a_recipe_takes_no_further_edits(address: str, tmp_path: Path) -> None:
    found = run("--recipe", "r.json", "--add", "3=1", out=tmp_path, address=address)
    assert found.exit_code == 2
    assert "a recipe holds" in found.output


def test_progress_comes_first_and_refusals_name_the_field(address: str) -> None:
    settings = GenerationSettings(model=generations.MODEL, prompt="a star", seed=1, steps=2)
    with Client(address) as client:
        messages = list(client.generate(settings, omit_twin=True, preview_interval=1))
        assert [m.progress.step for m in messages[:-1]] == [0, 1, 2]
        assert messages[-1].result.recipe.settings.seed == 1
        settings.width = 63
        with pytest.raises(ClientError, match="multiple of 8"):
            list(client.generate(settings))


async def test_generations_asynchronously(address: str) -> None:
    settings = GenerationSettings(model=generations.MODEL, prompt="a star", seed=1, steps=1)
    async with AsyncClient(address) as client:
        assert await client.generator() == generations.MODEL
        messages = [m async for m in client.generate(settings)]
    assert [m.WhichOneof("content") for m in messages] == ["progress", "progress", "result"]


def test_the_page_steers_where_the_server_generates(address: str) -> None:
    from vision_sae_client.web import page, steer

    with Client(address) as client:
        found = steer.steerable(client)
        assert found is not None
        assert found.model == generations.MODEL
        assert found.features == []  # none has a label
        shown, said = steer.steered(client, found.model, "a star", f"{UP}/3", 30.0, 1)
        assert shown is not None
        assert shown.size == (3 * 256 + 8, 256)
        assert "pixel change" in said
        for seed in (None, -1.0, 1e300, float("nan")):
            nothing, why = steer.steered(client, found.model, "a star", None, 0.0, seed)
            assert nothing is None
            assert "a seed is a whole number" in why
        nothing, why = steer.steered(client, found.model, "a star", f"{UP}/999", 1.0, 1)
        assert nothing is None
        assert "999" in why
    assert "vs-steer" in str(page.build_page(address).config)


def test_confirmed_labels_are_offered_and_guesses_where_there_is_none(
    tiny_generator: SdxlModel, generated_bundles: list[Bundle]
) -> None:
    from vision_sae_client.web import steer

    state = generations.state(tiny_generator, generated_bundles)
    state.labels.add("dictionaries/up", [made(3, "red"), made(5, None)], identity="")
    with serving.address(state) as where, Client(where) as client:
        found = steer.steerable(client)
        assert found is not None
        assert found.features == [("red (guess) (3)", f"{UP}/3")]
        client.update_description(f"{UP}/4", "blue")
        found = steer.steerable(client)
        assert found is not None
        assert found.features == [("blue (4)", f"{UP}/4")]


def test_a_server_that_does_not_answer_has_nothing_to_steer() -> None:
    from vision_sae_client.web import steer

    with Client("127.0.0.1:1", timeout=0.2) as client:
        assert steer.steerable(client) is None

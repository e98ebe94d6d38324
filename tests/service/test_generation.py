"""GenerationService over a tiny pipeline with random weights: every picture has its twin."""

from __future__ import annotations

import io
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

from tests.worlds import generations, serving
from tests.worlds.labels import made
from vision_sae.bundles.read import Bundle
from vision_sae.labels.entries import Unit
from vision_sae.models.sdxl import SdxlModel
from vision_sae.tensors import from_proto, to_proto
from vision_sae.v1 import attribution_service_pb2 as attribution_pb
from vision_sae.v1 import (
    attribution_service_pb2_grpc,
    catalog_service_pb2_grpc,
    edit_pb2,
    generation_service_pb2_grpc,
    image_pb2,
    model_pb2,
)
from vision_sae.v1 import catalog_service_pb2 as catalog_pb
from vision_sae.v1 import generation_service_pb2 as pb

STRONG = 60.0
NOT_A_NUMBER = np.full((8, 8), np.nan, dtype=np.float32)


@pytest.fixture(scope="module")
def held(tiny_generator: SdxlModel, generated_bundles: list[Bundle]) -> Any:
    return generations.state(tiny_generator, generated_bundles)


@pytest.fixture(scope="module")
def channel(held: Any) -> Iterator[grpc.Channel]:
    with serving.serving(held) as opened:
        yield opened


@pytest.fixture(scope="module")
def service(channel: grpc.Channel) -> Any:
    return generation_service_pb2_grpc.GenerationServiceStub(channel)  # type: ignore[no-untyped-call]


def edit(feature: int = 3, bundle: str = "up", **fields: Any) -> edit_pb2.Edit:
    given = {"operation": edit_pb2.EDIT_OPERATION_ADD, "value": STRONG} | fields
    return edit_pb2.Edit(feature=f"dictionaries/{bundle}/features/{feature}", **given)


def settings(*edits: edit_pb2.Edit, **fields: Any) -> pb.GenerationSettings:
    given = {"model": generations.MODEL, "prompt": "a red star", "seed": 5, "steps": 2} | fields
    return pb.GenerationSettings(edits=edits, **given)


def messages(service: Any, request: pb.GenerateRequest) -> list[pb.GenerateResponse]:
    return list(service.Generate(request))


def result(service: Any, *edits: edit_pb2.Edit, **fields: Any) -> pb.GenerationResult:
    asked = {name: fields.pop(name) for name in list(fields) if name in _OF_REQUEST}
    request = pb.GenerateRequest(settings=settings(*edits, **fields), **asked)
    return messages(service, request)[-1].result


_OF_REQUEST = {f.name for f in pb.GenerateRequest.DESCRIPTOR.fields} - {"settings"}


def pixels(image: image_pb2.EncodedImage) -> Any:
    return np.asarray(Image.open(io.BytesIO(image.data)).convert("RGB"), dtype=np.int64)


def test_progress_and_previews_come_before_the_result(service: Any) -> None:
    request = pb.GenerateRequest(settings=settings(), preview_interval=2, preview_pixels=32)
    *progress, last = messages(service, request)
    assert [(m.progress.step, m.progress.steps) for m in progress] == [(0, 2), (1, 2), (2, 2)]
    assert [m.progress.HasField("preview") for m in progress] == [False, False, True]
    assert progress[-1].progress.preview.width == 32
    assert last.WhichOneof("content") == "result"


def test_without_edits_the_picture_is_its_twin_bit_for_bit(service: Any) -> None:
    found = result(service)
    assert np.array_equal(pixels(found.picture), pixels(found.twin))
    assert from_proto(found.difference_map).max() == 0
    assert (found.effect.pixel_change, found.effect.perceptual_change) == (0, 0)
    assert not found.effect.HasField("pixel_change_inside")


def test_an_edit_moves_the_picture_and_not_its_twin(service: Any) -> None:
    plain, found = result(service), result(service, edit())
    assert np.array_equal(pixels(found.twin), pixels(plain.twin))
    # The map and its mean, from the pictures themselves.
    moved = np.abs(pixels(found.picture) - pixels(found.twin)).mean(2) / 255
    np.testing.assert_allclose(from_proto(found.difference_map), moved, atol=0.5 / 255 + 1e-6)
    assert found.effect.pixel_change == pytest.approx(moved.mean(), rel=1e-5)
    assert moved.mean() > 0
    assert found.effect.perceptual_change > 0


def test_the_unit_of_a_value_is_the_mean_activation(
    service: Any, generated_bundles: list[Bundle]
) -> None:
    mean = float(generated_bundles[1].statistics.mean[3])
    usual = result(service, edit(value=2.0))
    raw = result(service, edit(value=2.0 * mean, unit=edit_pb2.EDIT_UNIT_RAW))
    assert np.array_equal(pixels(usual.picture), pixels(raw.picture))


def test_how_a_picture_moves_toward_texts(
    tiny_generator: SdxlModel, generated_bundles: list[Bundle]
) -> None:
    from vision_sae_server.labelling import Labelling

    def similarities(pictures: Any, texts: Any) -> Any:
        """How bright a picture is, times the length of the text."""
        bright = np.array([np.asarray(picture, float).mean() for picture in pictures])
        return bright[:, None] * [len(text) for text in texts]

    name = "dictionaries/up"
    labelling = Labelling(similarities=similarities)
    state = generations.state(tiny_generator, generated_bundles, labelling)
    for feature, words in ((3, "three"), (7, "seven")):
        state.labels.edit(Unit(name, feature), words)
    state.labels.add(name, [made(5, "a guess")], identity="")
    carried = pb.Transport(dictionary=name, source_prompt="a ring", features=[5, 7])
    with serving.serving(state) as channel:
        service = generation_service_pb2_grpc.GenerationServiceStub(channel)  # type: ignore[no-untyped-call]
        found = result(service, edit(), effect_texts=["red", "a blue"])
        # Without any the confirmed labels of the features that edits and transports name.
        labelled = result(service, edit(), transports=[carried]).effect.texts
    assert [text.text for text in found.effect.texts] == ["red", "a blue"]
    for text in found.effect.texts:
        assert text.before == pytest.approx(pixels(found.twin).mean() * len(text.text), rel=1e-5)
        assert text.after == pytest.approx(pixels(found.picture).mean() * len(text.text), rel=1e-5)
    assert [text.text for text in labelled] == ["three", "seven"]


def test_the_share_of_pixels_that_changed(service: Any) -> None:
    found = result(service, edit())
    moved = np.abs(pixels(found.picture) - pixels(found.twin)).mean(2)
    (metric,) = found.effect.metrics
    assert (metric.name, metric.count) == ("changed_share", moved.size)
    assert metric.value == pytest.approx((moved > 0).mean())
    (metric,) = result(service).effect.metrics  # no edit: the twin, bit for bit
    assert metric.value == 0


def test_a_request_id_is_in_the_log(service: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "vision_sae_server")
    name = str(uuid.uuid4())
    result(service, request_id=name)
    assert f"Generate, request {name}" in caplog.messages


def test_a_model_has_the_sites_of_all_its_grids(two_level_generator: SdxlModel) -> None:
    from vision_sae_server.answers.models import model_message
    from vision_sae_server.served import ServedModel

    from vision_sae.models.noised import NoisedPictures

    held = ServedModel(NoisedPictures(two_level_generator), None, 1)  # type: ignore[arg-type]
    sites = model_message(held).sites
    names = [site.name.rpartition("/")[2] for site in sites]
    assert names == list(two_level_generator.sites)
    assert {(site.rows, site.cols) for site in sites} == {(8, 8), (16, 16)}
    assert model_message(held).parameters == two_level_generator.parameters > 0


def test_a_region_divides_the_figures(service: Any) -> None:
    box = image_pb2.Region(box=image_pb2.Box(x0=0, y0=0, x1=32, y1=64))
    found = result(service, edit(where=edit_pb2.Where(region=box)))
    moved = np.abs(pixels(found.picture) - pixels(found.twin)).mean(2) / 255
    assert found.effect.pixel_change_inside == pytest.approx(moved[:, :32].mean(), rel=1e-5)
    assert found.effect.pixel_change_outside == pytest.approx(moved[:, 32:].mean(), rel=1e-5)


def test_places_that_say_the_same_give_the_same_picture(service: Any) -> None:
    left = np.zeros((8, 8), dtype=np.float32)
    left[:, :4] = 1
    places = [
        edit_pb2.Where(region=image_pb2.Region(box=image_pb2.Box(x0=0, y0=0, x1=32, y1=64))),
        edit_pb2.Where(region=image_pb2.Region(mask=to_proto(np.repeat(left, 5, axis=0) > 0))),
        edit_pb2.Where(weights=to_proto(left)),
        edit_pb2.Where(patches=edit_pb2.PatchSet(indices=np.flatnonzero(left))),
    ]
    pictures = [pixels(result(service, edit(where=place)).picture) for place in places]
    for picture in pictures[1:]:
        assert np.array_equal(picture, pictures[0])


def test_an_edit_where_the_feature_fires_needs_its_codes(service: Any) -> None:
    nowhere = edit_pb2.Where(own_map=edit_pb2.OwnMap(min_quantile=1.0))
    somewhere = edit_pb2.Where(own_map=edit_pb2.OwnMap())
    # Added wherever any feature fires: some of 48 do; beyond their largest activation, none does.
    every = range(generations.WIDTH)
    found = result(service, *(edit(i, where=somewhere) for i in every))
    assert found.effect.pixel_change > 0
    still = result(service, *(edit(i, where=nowhere) for i in every), prompt="a red star")
    assert still.effect.pixel_change < found.effect.pixel_change


def test_where_a_feature_fires_by_itself_divides_the_figures(service: Any) -> None:
    encode = ["dictionaries/up"]
    fires = result(service, encode_dictionaries=encode).encodings[0].features[0]
    assert 0 < fires.patch_count < 64
    where = edit_pb2.Where(own_map=edit_pb2.OwnMap())
    found = result(service, edit(fires.feature.index, where=where))
    assert found.effect.HasField("pixel_change_inside")
    assert found.effect.HasField("pixel_change_outside")
    share = (found.effect.pixel_change - found.effect.pixel_change_outside) / (
        found.effect.pixel_change_inside - found.effect.pixel_change_outside
    )
    # As many of 64 patches as it fires on at either of the two steps.
    assert 0 < share * 64 <= 2 * fires.patch_count + 1e-3
    assert share * 64 == pytest.approx(round(share * 64), abs=0.05)


def test_when_an_edit_happens(service: Any) -> None:
    def at(**when: Any) -> Any:
        return pixels(result(service, edit(when=edit_pb2.When(**when))).picture)

    always = pixels(result(service, edit()).picture)
    both = at(steps=edit_pb2.StepRange(first=0))
    late = at(steps=edit_pb2.StepRange(first=1))
    faded = at(schedule=edit_pb2.StrengthSchedule(factors=[0.0, 1.0]))
    assert np.array_equal(both, always)
    assert not np.array_equal(late, always)
    assert np.array_equal(faded, late)


def test_a_recipe_gives_the_picture_back(service: Any) -> None:
    first = result(service, edit(), edit(7, "down", value=-20.0), guidance_scale=2.0)
    request = pb.GenerateRequest(recipe=first.recipe)
    again = messages(service, request)[-1].result
    assert again.reproduced
    assert again.picture.data == first.picture.data
    assert again.recipe == first.recipe
    assert set(first.recipe.manifest_sha256) == {"dictionaries/up", "dictionaries/down"}


def test_a_seed_that_was_not_given_is_told(service: Any) -> None:
    asked = settings()
    asked.ClearField("seed")
    one, other = (messages(service, pb.GenerateRequest(settings=asked))[-1] for _ in range(2))
    assert one.result.recipe.settings.seed != other.result.recipe.settings.seed
    assert one.result.recipe.settings.width == 64
    again = messages(service, pb.GenerateRequest(recipe=one.result.recipe))[-1].result
    assert again.reproduced


@pytest.mark.parametrize(
    "part", ["server_version", "weights_sha256", "device", "manifest_sha256", "scheduler"]
)
def test_a_recipe_of_something_else_is_refused_by_name(service: Any, part: str) -> None:
    recipe = result(service, edit()).recipe
    if part == "manifest_sha256":
        recipe.manifest_sha256["dictionaries/up"] = "0" * 64
    else:
        setattr(recipe, part, "0" * 64)
    with pytest.raises(grpc.RpcError) as refused:
        messages(service, pb.GenerateRequest(recipe=recipe))
    code, _, field = serving.refusal(refused.value)
    assert code == grpc.StatusCode.FAILED_PRECONDITION
    assert field.startswith(f"recipe.{part}")
    drifted = messages(service, pb.GenerateRequest(recipe=recipe, allow_drift=True))[-1].result
    assert drifted.reproduced


def test_features_are_carried_from_another_picture(service: Any, tiny_generator: Any) -> None:
    def carried(**fields: Any) -> Any:
        transport = pb.Transport(dictionary="dictionaries/up", source_prompt="a ring", **fields)
        return result(service, transports=[transport])

    everything = range(generations.WIDTH)
    found = carried(features=everything, source_seed=9, strength=30.0)
    assert found.effect.pixel_change > 0
    # What is carried from the very same picture changes nothing.
    same = pb.Transport(dictionary="dictionaries/up", source_prompt="a red star", strength=30.0)
    assert result(service, transports=[same]).effect.pixel_change == 0
    part = image_pb2.Region(box=image_pb2.Box(x0=0, y0=0, x1=32, y1=32))
    inside = carried(source_seed=9, target_region=part, strength=30.0).effect
    assert inside.HasField("pixel_change_inside")
    # A source of the same seed as the picture, where none is told.
    assert carried(source_seed=5, strength=9.0) == carried(strength=9.0)


def test_a_picture_to_start_from(service: Any) -> None:
    def start(colour: str, strength: float) -> Any:
        buffer = io.BytesIO()
        Image.new("RGB", (40, 60), colour).save(buffer, "PNG")
        initial = pb.InitialImage(image=image_pb2.Image(data=buffer.getvalue()), strength=strength)
        return result(service, initial_image=initial, steps=4)

    faint = [pixels(start(colour, 0.25).twin) for colour in ("white", "black")]
    noisy = [pixels(start(colour, 1.0).twin) for colour in ("white", "black")]
    assert np.abs(faint[0] - faint[1]).mean() > np.abs(noisy[0] - noisy[1]).mean()


def test_steps_that_a_picture_to_start_from_skips_do_not_count(service: Any) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(buffer, "PNG")
    initial = pb.InitialImage(image=image_pb2.Image(data=buffer.getvalue()), strength=0.5)
    asked = settings(initial_image=initial, steps=4)
    first, *_ = messages(service, pb.GenerateRequest(settings=asked))
    assert first.progress.steps == 2
    late = edit(when=edit_pb2.When(steps=edit_pb2.StepRange(first=2)))
    with pytest.raises(grpc.RpcError) as refused:
        result(service, late, initial_image=initial, steps=4)
    assert serving.refusal(refused.value)[2] == "when.steps"


def test_which_features_fired_in_the_generation(service: Any) -> None:
    names = ["dictionaries/down", "dictionaries/up"]
    found = result(service, edit(value=1000.0), encode_dictionaries=names)
    assert [e.dictionary for e in found.encodings] == names
    up = found.encodings[1]
    assert up.features[0].feature.index == 3  # the one that was added
    assert up.features[0].patch_count == 64
    assert up.l0 == pytest.approx(12)  # 6 of a patch at each of 2 steps


def test_eight_at_once_are_what_each_is_alone(service: Any) -> None:
    edits = [edit(i, generations.NAMES[i % 2], value=10.0 * i) for i in range(8)]
    alone = [result(service, e, seed=i) for i, e in enumerate(edits)]
    with ThreadPoolExecutor(8) as pool:
        together = pool.map(lambda pair: result(service, pair[1], seed=pair[0]), enumerate(edits))
        for one, other in zip(alone, together, strict=True):
            assert one.picture.data == other.picture.data
            assert one.twin.data == other.twin.data


def test_a_cancelled_call_ends_with_the_step_it_is_in(service: Any, held: Any) -> None:
    model = held.models[generations.MODEL]
    call = service.Generate(pb.GenerateRequest(settings=settings(steps=200)))
    for message in call:
        if message.progress.step == 2:
            call.cancel()
            break
    result(service)  # waits its turn: the lane is free after it
    assert model.lane.waiting == 0
    seen = []
    hook = model.generator.pipeline.unet.register_forward_hook(lambda *_: seen.append(1))
    with hook:
        result(service)
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"edits": [edit(generations.WIDTH)]}, "feature"),
        ({"width": 136}, "settings.width"),
        ({"width": 60}, "settings.width"),
        ({"negative_prompt": "blue"}, "settings.negative_prompt"),
        (
            {"edits": [edit(when=edit_pb2.When(steps=edit_pb2.StepRange(first=2)))]},
            "when.steps",
        ),
        (
            {"edits": [edit(where=edit_pb2.Where(patches=edit_pb2.PatchSet(indices=[64])))]},
            "edits.where.patches",
        ),
        (
            {"edits": [edit(where=edit_pb2.Where(weights=to_proto(np.ones((3, 3), np.float32))))]},
            "edits.where.weights",
        ),
        (
            {"edits": [edit(where=edit_pb2.Where(weights=to_proto(NOT_A_NUMBER)))]},
            "edits.where.weights",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_name(service: Any, wrong: Any, field: str) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        result(service, *wrong.pop("edits", ()), **wrong)
    assert serving.refusal(refused.value)[2] == field


def test_other_formats_and_no_twin(service: Any) -> None:
    found = result(service, edit(), format=image_pb2.IMAGE_FORMAT_WEBP, omit_twin=True)
    assert Image.open(io.BytesIO(found.picture.data)).format == "WEBP"
    assert not found.HasField("twin")
    assert not found.HasField("effect")
    assert found.recipe.picture_sha256 == result(service, edit()).recipe.picture_sha256


def test_the_features_of_an_uploaded_picture(channel: grpc.Channel) -> None:
    stub = attribution_service_pb2_grpc.AttributionServiceStub(channel)  # type: ignore[no-untyped-call]
    buffer = io.BytesIO()
    Image.new("RGB", (80, 64), "orange").save(buffer, "PNG")

    def encode(**noising: Any) -> Any:
        return stub.Encode(
            attribution_pb.EncodeRequest(
                image=image_pb2.Image(data=buffer.getvalue()),
                dictionary="dictionaries/down",
                noising=attribution_pb.Noising(**noising) if noising else None,
            )
        )

    found = encode()
    assert (found.grid.rows, found.grid.image_width) == (8, 80)
    assert found.l0 == 6
    assert found == encode(strength=0.5)
    assert found != encode(strength=0.25)
    assert found != encode(prompt="a ring", seed=1)


def test_the_catalogue_says_what_generates(channel: grpc.Channel) -> None:
    stub = catalog_service_pb2_grpc.CatalogServiceStub(channel)  # type: ignore[no-untyped-call]
    (model,) = stub.ListModels(catalog_pb.ListModelsRequest()).models
    assert model.kind == model_pb2.MODEL_KIND_TEXT_TO_IMAGE
    assert f"{generations.MODEL}/sites/{generations.SITES[0]}" in [s.name for s in model.sites]
    info = stub.GetServerInfo(catalog_pb.GetServerInfoRequest())
    assert info.limits.max_generated_pixels == 128

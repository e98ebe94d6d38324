"""Replicas of a model on several devices: which one computes, and that no answer mixes two.

The replicas here are on the CPU. Two that differ in their weights show which of them answered.
"""

from __future__ import annotations

import copy
import io
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
import torch
from google.protobuf.message import Message
from vision_sae_server import app, loading, served
from vision_sae_server.runtime.lanes import ModelLane
from vision_sae_server.served import ServedModel

from tests.worlds import generations, serving
from tests.worlds import tiny as worlds
from tests.worlds.serving import DICTIONARY
from vision_sae.bundles.read import Bundle
from vision_sae.config import ServeConfig
from vision_sae.errors import InvalidInputError
from vision_sae.labels.store import LabelStore
from vision_sae.models.sdxl import SdxlModel
from vision_sae.models.vit import VitModel
from vision_sae.v1 import attribution_service_pb2 as attribution_pb
from vision_sae.v1 import (
    attribution_service_pb2_grpc,
    edit_pb2,
    generation_service_pb2_grpc,
    image_pb2,
    intervention_service_pb2_grpc,
    search_service_pb2_grpc,
    target_pb2,
)
from vision_sae.v1 import generation_service_pb2 as generation_pb
from vision_sae.v1 import intervention_service_pb2 as intervention_pb
from vision_sae.v1 import search_service_pb2 as search_pb

Call = Callable[[grpc.Channel], Message]


def image(seed: int) -> image_pb2.Image:
    buffer = io.BytesIO()
    worlds.noise_image(16, 16, seed).save(buffer, "PNG")
    return image_pb2.Image(data=buffer.getvalue())


def encode(channel: grpc.Channel, seed: int = 0) -> Message:
    stub: Any = attribution_service_pb2_grpc.AttributionServiceStub(channel)  # type: ignore[no-untyped-call]
    request = attribution_pb.EncodeRequest(image=image(seed), dictionary=DICTIONARY)
    answer: Message = stub.Encode(request, timeout=20)
    return answer


HALF = image_pb2.Region(box=image_pb2.Box(x0=0, y0=0, x1=16, y1=8))
TARGETS = {
    "class": target_pb2.Target(class_logit=target_pb2.ClassTarget(index=3)),
    "image": target_pb2.Target(image=target_pb2.ImageTarget(image=image(9))),
    "region": target_pb2.Target(
        region=target_pb2.RegionTarget(region=HALF, class_logit=target_pb2.ClassTarget(index=3))
    ),
}


def attribute(target: str) -> Call:
    def call(channel: grpc.Channel) -> Message:
        stub: Any = attribution_service_pb2_grpc.AttributionServiceStub(channel)  # type: ignore[no-untyped-call]
        request = attribution_pb.AttributeRequest(
            image=image(0), dictionaries=[DICTIONARY], target=TARGETS[target], faithfulness=True
        )
        answer: Message = stub.Attribute(request, timeout=20)
        return answer

    return call


def intervene(channel: grpc.Channel) -> Message:
    """One picture by all targets. A stream of two in one call is `test_pictures_of_a_stream`."""
    stub: Any = intervention_service_pb2_grpc.InterventionServiceStub(channel)  # type: ignore[no-untyped-call]
    request = intervention_pb.InterveneRequest(
        plan=plan(), images=[intervention_pb.InterventionImage(image=image(0))]
    )
    answer: Message = stub.Intervene(request, timeout=20)
    return answer


def plan() -> intervention_pb.InterventionPlan:
    return intervention_pb.InterventionPlan(
        edits=[
            edit_pb2.Edit(
                feature=f"{DICTIONARY}/features/0",
                operation=edit_pb2.EDIT_OPERATION_ADD,
                value=30,
                unit=edit_pb2.EDIT_UNIT_RAW,
            )
        ],
        targets=[intervention_pb.NamedTarget(id=n, target=t) for n, t in TARGETS.items()],
        include_embeddings=True,
    )


REGION = search_pb.ImageRegion(image=image(0), region=HALF)


def features(channel: grpc.Channel) -> Message:
    stub: Any = search_service_pb2_grpc.SearchServiceStub(channel)  # type: ignore[no-untyped-call]
    request = search_pb.SearchFeaturesRequest(dictionaries=[DICTIONARY], region=REGION)
    answer: Message = stub.SearchFeatures(request, timeout=20)
    return answer


def patches(channel: grpc.Channel) -> Message:
    stub: Any = search_service_pb2_grpc.SearchServiceStub(channel)  # type: ignore[no-untyped-call]
    request = search_pb.SearchPatchesRequest(dictionary=DICTIONARY, region=REGION)
    answer: Message = stub.SearchPatches(request, timeout=20)
    return answer


CALLS: dict[str, Call] = {
    **{f"attribute-{target}": attribute(target) for target in TARGETS},
    "intervene": intervene,
    "features": features,
    "patches": patches,
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    bundle = serving.zoo(tmp_path_factory.mktemp("replicas"), described=False)
    bundle.statistics.max[:] = 1  # as if every feature had fired, for searches by activation
    return bundle


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "_LAME_DUCK_SECONDS", 0)


def other_model() -> VitModel:
    """The tiny model with other weights."""
    model = worlds.tiny_model(img_size=16)
    with torch.no_grad():
        for parameter in model.backbone.module.parameters():
            parameter.mul_(1.25)
    return model


@contextmanager
def served_by(bundle: Bundle, *models: VitModel) -> Iterator[tuple[grpc.Channel, ServedModel]]:
    """A server with these replicas of a model."""
    held = serving.state(bundle, LabelStore("sqlite://"), model=models[0], replicas=models[1:])
    with serving.serving(held) as channel:
        yield channel, held.models[serving.MODEL]


@pytest.fixture
def unlike(monkeypatch: pytest.MonkeyPatch) -> tuple[VitModel, VitModel]:
    """Replicas that no server would start with."""
    monkeypatch.setattr(served, "check_alike", lambda models: None)
    return worlds.tiny_model(img_size=16), other_model()


def test_a_call_computes_on_one_replica_and_calls_take_turns(
    bundle: Bundle, unlike: tuple[VitModel, VitModel]
) -> None:
    expected: list[dict[str, bytes]] = []
    for model in unlike:
        with served_by(bundle, model) as (channel, _):
            answers = {n: call(channel).SerializeToString(True) for n, call in CALLS.items()}
            expected.append(answers)
    with served_by(bundle, *unlike) as (channel, _):
        for name, call in CALLS.items():
            seen = {call(channel).SerializeToString(True) for _ in range(2)}
            assert seen == {answers[name] for answers in expected}, name
            assert len(seen) == 2, name


def test_pictures_of_a_stream_go_to_all_replicas(
    bundle: Bundle, unlike: tuple[VitModel, VitModel]
) -> None:
    def changes(channel: grpc.Channel, count: int) -> list[bytes]:
        stub: Any = intervention_service_pb2_grpc.InterventionServiceStub(channel)  # type: ignore[no-untyped-call]
        request = intervention_pb.StreamInterveneRequest
        items = [request(plan=plan())]
        picture = intervention_pb.InterventionImage(image=image(0))
        items += [request(image=picture) for _ in range(count)]
        *found, _summary = stub.StreamIntervene(iter(items), timeout=20)
        return [message.image.change.SerializeToString(True) for message in found]

    alone = set()
    for model in unlike:
        with served_by(bundle, model) as (channel, _):
            alone |= set(changes(channel, 1))
    with served_by(bundle, *unlike) as (channel, _):
        found = changes(channel, 8)
    assert len(found) == 8
    assert set(found) == alone


def test_pictures_to_encode_go_to_the_replica_that_is_free(
    bundle: Bundle, unlike: tuple[VitModel, VitModel]
) -> None:
    expected = []
    for model in unlike:
        with served_by(bundle, model) as (channel, _):
            expected.append(encode(channel))
    assert expected[0] != expected[1]
    with served_by(bundle, *unlike) as (channel, model_served):
        for busy, free in ((0, 1), (1, 0)):
            over = threading.Event()
            model_served.everywhere[busy].lane.post(lambda over=over: over.wait(20))  # type: ignore[misc]
            try:
                assert [encode(channel) for _ in range(3)] == [expected[free]] * 3
            finally:
                over.set()


def test_answers_under_load_are_those_of_one_model_alone(bundle: Bundle) -> None:
    seeds, models = range(24), [worlds.tiny_model(img_size=16) for _ in range(2)]
    with served_by(bundle, worlds.tiny_model(img_size=16)) as (channel, _):
        alone = [encode(channel, seed) for seed in seeds]
        attributed = attribute("image")(channel)
    with served_by(bundle, *models) as (channel, model), ThreadPoolExecutor(12) as callers:
        begun = [callers.submit(attribute("image"), channel) for _ in range(4)]
        assert list(callers.map(lambda seed: encode(channel, seed), seeds)) == alone
        assert [each.result() for each in begun] == [attributed] * 4
        assert model.devices == ["cpu", "cpu"]


def test_a_call_goes_to_the_lane_with_the_least_to_do() -> None:
    lanes = ModelLane(), ModelLane()
    models = [ServedModel(None, lane, 1) for lane in lanes]  # type: ignore[arg-type]
    model = ServedModel(None, lanes[0], 1, (models[1],))  # type: ignore[arg-type]
    assert [model.free().lane for _ in range(4)] == [*lanes, *lanes]
    lanes[0].waiting = 1
    assert [model.free().lane for _ in range(3)] == [lanes[1]] * 3
    assert model.free().replicas == ()
    lanes[0].waiting = 0
    for lane in lanes:
        lane.close()


def test_replicas_that_give_other_numbers_are_refused(bundle: Bundle) -> None:
    with (
        pytest.raises(InvalidInputError, match="tiny gives other numbers on cpu") as caught,
        served_by(bundle, worlds.tiny_model(img_size=16), other_model()),
    ):
        pytest.fail("it was served")
    assert caught.value.field == "serve.devices"


def test_a_list_of_devices_loads_a_replica_on_each(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []

    def load(name: str, *, device: str) -> VitModel:
        loaded.append(device)
        return worlds.tiny_model(img_size=16)

    monkeypatch.setattr(loading, "load_model", load)
    monkeypatch.setattr(loading, "bound", lambda model, identity: model)
    monkeypatch.setattr("vision_sae.devices.several", lambda names: tuple(names.split(",")))
    state = loading.load_state([bundle.path], ServeConfig(devices={"tiny": "cuda:0,cuda:1"}))
    assert loaded == ["cuda:0", "cuda:1"]
    assert len(state.dictionaries[DICTIONARY].model.everywhere) == 2
    assert state.dictionaries[DICTIONARY].model.lane is state.models[serving.MODEL].lane
    state.close()


def test_a_recipe_is_repeated_on_another_replica(
    tiny_generator: SdxlModel, generated_bundles: list[Bundle]
) -> None:
    replica = SdxlModel("tiny", copy.deepcopy(tiny_generator.pipeline), dtype="float32")
    held = generations.state(tiny_generator, generated_bundles, replicas=[replica])
    used: list[int] = []

    def note(number: int) -> Callable[..., None]:
        return lambda *_: used.append(number)

    hooks = [
        each.pipeline.unet.register_forward_hook(note(number))
        for number, each in enumerate((tiny_generator, replica))
    ]
    settings = generation_pb.GenerationSettings(
        model=generations.MODEL, prompt="a red star", seed=5, steps=2
    )
    with hooks[0], hooks[1], serving.serving(held) as channel:
        stub: Any = generation_service_pb2_grpc.GenerationServiceStub(channel)  # type: ignore[no-untyped-call]
        *_, first = stub.Generate(generation_pb.GenerateRequest(settings=settings))
        ran = set(used)
        used.clear()
        again = generation_pb.GenerateRequest(recipe=first.result.recipe)
        *_, second = stub.Generate(again)
    assert len(ran) == len(set(used)) == 1
    assert ran != set(used)
    assert second.result.reproduced

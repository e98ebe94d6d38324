"""Intervene over a real channel: pictures before and after, the control, groups, and refusals."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from PIL import Image

from tests.worlds import serving
from tests.worlds import tiny as worlds
from tests.worlds.serving import DICTIONARY, refusal
from vision_sae.labels.store import LabelStore
from vision_sae.models.vit import VitModel
from vision_sae.tensors import from_proto
from vision_sae.v1 import edit_pb2, image_pb2, target_pb2
from vision_sae.v1 import intervention_service_pb2 as pb
from vision_sae.v1 import intervention_service_pb2_grpc as intervention_grpc

INVALID = grpc.StatusCode.INVALID_ARGUMENT
STRONG = 30.0


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Any:
    bundle = serving.zoo(tmp_path_factory.mktemp("intervention"))
    return serving.state(bundle, LabelStore("sqlite://"))


@pytest.fixture(scope="module")
def model(held: Any) -> VitModel:
    found: VitModel = held.models[serving.MODEL].model
    return found


@pytest.fixture(scope="module")
def service(held: Any) -> Iterator[Any]:
    with serving.serving(held) as channel:
        yield intervention_grpc.InterventionServiceStub(channel)


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    worlds.noise_image(16, 16, seed).save(buffer, "PNG")
    return buffer.getvalue()


def image(seed: int, group: str = "", name: str = "") -> pb.InterventionImage:
    return pb.InterventionImage(id=name, image=image_pb2.Image(data=png(seed)), group=group)


def logit(index: int) -> target_pb2.Target:
    return target_pb2.Target(class_logit=target_pb2.ClassTarget(index=index))


def edit(feature: int = 0, value: float = STRONG, **fields: Any) -> edit_pb2.Edit:
    return edit_pb2.Edit(
        feature=f"{DICTIONARY}/features/{feature}",
        operation=edit_pb2.EDIT_OPERATION_ADD,
        value=value,
        unit=edit_pb2.EDIT_UNIT_RAW,
        **fields,
    )


def plan(*edits: edit_pb2.Edit, **fields: Any) -> pb.InterventionPlan:
    targets = [pb.NamedTarget(id=f"class {i}", target=logit(i)) for i in (3, 1)]
    return pb.InterventionPlan(edits=edits or [edit()], **{"targets": targets} | fields)


def intervene(service: Any, *images: pb.InterventionImage, **fields: Any) -> pb.InterveneResponse:
    edits = fields.pop("edits", [edit()])
    answer: pb.InterveneResponse = service.Intervene(
        pb.InterveneRequest(plan=plan(*edits, **fields), images=images or [image(0)])
    )
    return answer


def refused(call: Any) -> tuple[grpc.StatusCode, str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return refusal(caught.value)


def forward(model: VitModel, seed: int, value: float = 0.0) -> torch.Tensor:
    """The logits with ``value`` added to dimension 0 of the site, which is feature 0."""
    inputs = model.preprocess(Image.open(io.BytesIO(png(seed))))[None]
    step = torch.zeros(serving.WIDTH)
    step[0] = value
    with torch.no_grad(), model.replace(worlds.SITE, lambda vectors: vectors + step):
        logits = model.forward(inputs).logits
    assert logits is not None
    return logits[0]


def test_targets_and_classes_before_and_after(service: Any, model: VitModel) -> None:
    (outcome,) = intervene(service, top_classes=2, include_embeddings=True).images
    before, after = forward(model, 0), forward(model, 0, STRONG)
    change = outcome.change
    assert [t.id for t in change.targets] == ["class 3", "class 1"]
    assert change.targets[0].before == pytest.approx(float(before[3]), abs=1e-4)
    assert change.targets[0].after == pytest.approx(float(after[3]), abs=1e-4)
    assert not change.targets[0].HasField("control_change")
    leading = {*before.topk(2).indices.tolist(), *after.topk(2).indices.tolist()}
    assert {c.index for c in change.classes} == leading
    shares = [c.probability_before for c in change.classes]
    assert shares == sorted(shares, reverse=True)
    first = change.classes[0]
    assert first.probability_after == pytest.approx(float(after.softmax(0)[first.index]), abs=1e-4)
    vectors = [from_proto(t) for t in (change.embedding_before, change.embedding_after)]
    cosine = vectors[0] @ vectors[1] / np.prod([np.linalg.norm(v) for v in vectors])
    assert change.embedding_similarity == pytest.approx(cosine, abs=1e-5)
    assert change.relative_change > 0


def test_classes_have_their_names(service: Any, model: VitModel) -> None:
    model.class_names = ("ant", "bee", "cat", "dog", "elk")
    try:
        classes = intervene(service).images[0].change.classes
    finally:
        model.class_names = ()
    assert {c.index: c.label for c in classes} == dict(
        enumerate(["ant", "bee", "cat", "dog", "elk"])
    )


def test_values_are_in_mean_activations_unless_raw(service: Any) -> None:
    usual = edit()
    usual.unit, usual.value = edit_pb2.EDIT_UNIT_MEAN_ACTIVATION, 2.0
    # Feature 0 fires with 1, 3, ..., 39, whose mean is 20.
    raw = intervene(service, edits=[edit(value=40.0)]).images[0].change
    assert intervene(service, edits=[usual]).images[0].change.targets == raw.targets


def test_effects_are_summed_up_for_each_group(service: Any, model: VitModel) -> None:
    images = [image(0, "with"), image(1, "with"), image(2, "without")]
    summary = intervene(service, *images).summary
    assert (summary.succeeded, summary.failed) == (3, 0)
    assert [(e.id, e.group, e.count) for e in summary.effects] == [
        ("class 3", "with", 2),
        ("class 3", "without", 1),
        ("class 1", "with", 2),
        ("class 1", "without", 1),
    ]
    moved = [float(forward(model, i, STRONG)[3] - forward(model, i)[3]) for i in range(3)]
    first, second = summary.effects[:2]
    assert first.mean == pytest.approx(np.mean(moved[:2]), abs=1e-4)
    assert first.lower == pytest.approx(min(moved[:2]), abs=1e-4)
    assert first.upper == pytest.approx(max(moved[:2]), abs=1e-4)
    assert not second.HasField("lower")
    flips = [int(forward(model, i).argmax() != forward(model, i, STRONG).argmax()) for i in (0, 1)]
    assert first.flipped == np.mean(flips)


def test_the_control_is_of_other_features_that_fire(service: Any) -> None:
    answer = intervene(service, image(0), image(1), control_count=5, seed=3)
    for outcome in answer.images:
        target = outcome.change.targets[0]
        moved = abs(target.after - target.before)
        assert target.specificity == pytest.approx(moved / target.control_change)
    effect = answer.summary.effects[0]
    assert effect.HasField("control_mean")
    assert 0 <= effect.control_exceeded <= 1
    again = intervene(service, image(0), image(1), control_count=5, seed=3)
    assert again == answer


def test_a_place_is_in_pixels_of_each_picture(service: Any) -> None:
    corner = image_pb2.Region(box=image_pb2.Box(x0=0, y0=0, x1=8, y1=8))
    part = edit(where=edit_pb2.Where(region=corner))
    index = edit(where=edit_pb2.Where(patches=edit_pb2.PatchSet(indices=[0])))
    by_region, by_index = (
        intervene(service, edits=[e]).images[0].change.targets for e in (part, index)
    )
    assert by_region == by_index
    assert by_region != intervene(service).images[0].change.targets


def test_one_bad_picture_does_not_cost_the_others(service: Any) -> None:
    bad = pb.InterventionImage(id="bad", image=image_pb2.Image(data=b"no picture"))
    answer = intervene(service, bad, image(0, name="good"))
    assert [outcome.id for outcome in answer.images] == ["bad", "good"]
    assert answer.images[0].error.reason == "INVALID_IMAGE"
    assert answer.images[1].change.targets
    assert (answer.summary.succeeded, answer.summary.failed) == (1, 1)


def test_a_stream_of_pictures_ends_with_the_summary(service: Any) -> None:
    pictures = [image(i, name=str(i)) for i in range(5)]
    items = [
        pb.StreamInterveneRequest(plan=plan()),
        *(pb.StreamInterveneRequest(image=picture) for picture in pictures),
    ]
    *outcomes, last = service.StreamIntervene(iter(items))
    whole = intervene(service, *pictures)
    assert [answer.image for answer in outcomes] == list(whole.images)
    assert last.summary == whole.summary


def test_a_stream_begins_with_its_plan(service: Any) -> None:
    items = [pb.StreamInterveneRequest(image=image(0))]
    assert refused(lambda: list(service.StreamIntervene(iter(items))))[1:] == (
        "INVALID_INPUT",
        "plan",
    )


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"edits": [edit(99)]}, "feature"),
        (
            {"edits": [edit(when=edit_pb2.When(steps=edit_pb2.StepRange(first=0)))]},
            "plan.edits.when",
        ),
        (
            {"targets": [pb.NamedTarget(id="same", target=logit(i)) for i in (0, 1)]},
            "plan.targets.id",
        ),
    ],
)
def test_a_plan_that_cannot_be_is_refused(service: Any, fields: dict[str, Any], field: str) -> None:
    assert refused(lambda: intervene(service, **fields))[2] == field

"""Encode, without a server and as the server answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vision_sae as vs
from tests.unit.api.conftest import World
from tests.worlds import serving
from tests.worlds import tiny as worlds
from vision_sae.attribution.firing import Order
from vision_sae.errors import (
    FeatureNotFoundError,
    InvalidInputError,
    MismatchError,
)
from vision_sae.labels.store import LabelStore
from vision_sae.tensors import from_proto
from vision_sae.v1 import attribution_service_pb2 as pb
from vision_sae.v1 import attribution_service_pb2_grpc as attribution_grpc
from vision_sae.v1 import image_pb2

ORDERS: dict[Order, pb.EncodeOrder.ValueType] = {
    "strongest": pb.ENCODE_ORDER_MAX_ACTIVATION,
    "total": pb.ENCODE_ORDER_TOTAL_ACTIVATION,
    "relative": pb.ENCODE_ORDER_RELATIVE_ACTIVATION,
    "informative": pb.ENCODE_ORDER_INFORMATIVE,
}


@pytest.mark.parametrize("order", ORDERS)
def test_it_answers_as_the_server_does(world: World, order: Order) -> None:
    labels = LabelStore("sqlite://")
    labels.import_bundle(world.bundle)
    held = serving.state(world.bundle, labels, model=world.model)
    image = image_pb2.Image(data=world.picture.read_bytes())
    request = pb.EncodeRequest(
        image=image, dictionary="dictionaries/bundle", order=ORDERS[order], top_k=5
    )
    with serving.serving(held) as channel:
        stub = attribution_grpc.AttributionServiceStub(channel)  # type: ignore[no-untyped-call]
        theirs = stub.Encode(request)
    ours = vs.encode(world.picture, world.bundle, model=world.model, order=order, top=5)
    assert [f.feature for f in ours] == [f.feature.index for f in theirs.features]
    assert [f.activation for f in ours] == [f.max_activation for f in theirs.features]
    for mine, answered in zip(ours, theirs.features, strict=True):
        expected = from_proto(answered.heatmap)
        # The wire has 8 bits of each activation.
        np.testing.assert_allclose(mine.map, expected, atol=mine.activation / 255 + 1e-6)
    assert ours.active == theirs.active_count
    assert ours.explained_variance == pytest.approx(theirs.explained_variance, abs=1e-6)
    assert ours.l0 == pytest.approx(theirs.l0)


def test_the_codes_are_those_of_the_site_vectors(world: World) -> None:
    found = vs.encode(world.picture, world.bundle, model=world.model, top=1000)
    with torch.inference_mode(), world.model.capture([world.bundle.site]) as captured:
        world.model.forward(world.model.preprocess(Image.open(world.picture))[None])
    codes = world.dictionary.dictionary.encode(captured[world.bundle.site][0, 1:])
    expected = np.zeros((16, 64), np.float32)
    np.put_along_axis(expected, codes.indices.numpy(), codes.values.numpy(), axis=1)
    np.testing.assert_array_equal(found.numpy(), expected)
    assert {f.feature for f in found} == set(np.flatnonzero(expected.any(0)).tolist())
    for feature in found:
        np.testing.assert_array_equal(feature.map.ravel(), expected[:, feature.feature])
        assert feature.total == pytest.approx(expected[:, feature.feature].sum())
        assert feature.patches == (expected[:, feature.feature] > 0).sum()


def test_every_way_to_name_a_dictionary_gives_the_same(world: World) -> None:
    expected = vs.encode(world.picture, world.bundle, model=world.model)
    for dictionary in (
        world.bundle.path,
        str(world.bundle.path),
        world.dictionary,
        world.root / "dictionary",
    ):
        found = vs.encode(world.picture, dictionary, model=world.model)
        np.testing.assert_array_equal(found.numpy(), expected.numpy())


def test_an_answer_depends_on_no_other_picture(world: World) -> None:
    alone = vs.encode(world.picture, world.bundle, model=world.model)
    others = [world.picture, worlds.noise_image(50, 30), np.zeros((8, 8, 3), np.uint8)]
    together = vs.encode(others, world.bundle, model=world.model)
    assert [e.placed.name for e in together] == ["003.png", "picture 1", "picture 2"]
    np.testing.assert_array_equal(alone.numpy(), together[0].numpy())
    assert vs.encode([], world.bundle, model=world.model) == []


def test_a_box_asks_about_a_part(world: World) -> None:
    picture = worlds.noise_image(32, 32)  # seen whole: 4 x 4 patches of 8 pixels
    whole = vs.encode(picture, world.bundle, model=world.model, top=1000)
    corner = vs.encode(picture, world.bundle, model=world.model, top=1000, box=(0, 0, 8, 8))
    fires = {f.feature: float(f.map[0, 0]) for f in whole if f.map[0, 0] > 0}
    assert {f.feature: f.activation for f in corner} == pytest.approx(fires)
    assert corner.placed.boxes()[0].tolist() == [0, 0, 8, 8]
    with pytest.raises(InvalidInputError, match="selects no patch"):
        vs.encode(picture, world.bundle, model=world.model, box=(40, 40, 50, 50))


def test_orders_by_the_data_need_a_bundle(world: World) -> None:
    with pytest.raises(InvalidInputError, match="build a bundle") as refused:
        vs.encode(world.picture, world.dictionary, model=world.model, order="informative")
    assert refused.value.field == "order"
    with pytest.raises(InvalidInputError, match="order is one of strongest, total"):
        vs.encode(world.picture, world.bundle, model=world.model, order="any")  # type: ignore[call-overload]
    alone = vs.encode(world.picture, world.dictionary, model=world.model, order="total")
    assert (alone.explained_variance, alone.unusual) == (None, None)
    totals = [f.total for f in alone]
    assert totals == sorted(totals, reverse=True)


def test_another_model_is_refused(world: World) -> None:
    with pytest.raises(MismatchError):
        vs.encode(world.picture, world.bundle, model=worlds.tiny_model(num_classes=7))


def test_it_shows_itself(world: World) -> None:
    found = vs.encode(world.picture, world.bundle, model=world.model, top=6)
    lines = str(found).splitlines()
    assert lines[0].startswith(f"003.png: {found.active} features of bundle fire, 4 on a patch")
    assert lines[1].split() == ["feature", "activation", "total", "patches", "label"]
    assert len(lines) == 2 + 6
    assert found._repr_html_().count('<img src="data:image/jpeg;base64,') == 4
    frame = found.to_pandas()
    assert frame["feature"].tolist() == [f.feature for f in found]
    assert found.to_pil().size == found.placed.picture.size
    assert found.to_pil(found.features[1].feature) != found.placed.picture
    with pytest.raises(FeatureNotFoundError, match="not among the 6"):
        found.to_pil(10_000)


def test_labels_and_their_standing_are_told(world: World, tmp_path: Path) -> None:
    texts = vs.Labels.of(world.bundle).texts
    for found in vs.encode(world.picture, world.bundle, model=world.model, top=1000):
        assert found.label == texts.get(found.feature)
        assert not found.confirmed  # nothing has judged labels by captions alone here

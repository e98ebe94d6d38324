"""What Encode puts first when it is asked what says most about a picture."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vision_sae_server import app

from tests.worlds import serving
from tests.worlds import tiny as worlds
from tests.worlds.labels import made
from tests.worlds.serving import DICTIONARY
from vision_sae.attribution.firing import information
from vision_sae.bundles.read import Bundle
from vision_sae.labels.store import LabelStore
from vision_sae.v1 import attribution_service_pb2 as pb
from vision_sae.v1 import attribution_service_pb2_grpc as attribution_grpc
from vision_sae.v1 import image_pb2

PICTURES = 41
"""Of the zoo: a feature is dense that fires in 9 of them."""


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return serving.zoo(tmp_path, described=False)


@pytest.fixture
def labels() -> LabelStore:
    return LabelStore("sqlite://")


@pytest.fixture
def service(bundle: Bundle, labels: LabelStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(app, "_LAME_DUCK_SECONDS", 0)
    with serving.serving(serving.state(bundle, labels)) as channel:
        yield attribution_grpc.AttributionServiceStub(channel)  # type: ignore[no-untyped-call]


def encode(service: Any, order: pb.EncodeOrder.ValueType, top_k: int = 1000) -> dict[int, float]:
    """{feature: its largest activation} of a picture, in the order of the answer."""
    buffer = io.BytesIO()
    worlds.noise_image(16, 16, seed=3).save(buffer, "PNG")
    request = pb.EncodeRequest(
        image=image_pb2.Image(data=buffer.getvalue()),
        dictionary=DICTIONARY,
        order=order,
        top_k=top_k,
    )
    found = service.Encode(request).features
    return {item.feature.index: item.max_activation for item in found}


def test_information_is_surprise_as_far_as_a_feature_fires() -> None:
    counts, relative = np.array([0, 9, 9, 9, 99]), np.array([1.0, 1.0, 0.5, 7.0, 1.0])
    found = information(counts, 99, relative)
    rare, usual, always = math.log(101), math.log(101 / 10), math.log(101 / 100)
    np.testing.assert_allclose(found, [rare, usual, usual / 2, usual, always])


def test_what_says_most_about_a_picture_comes_first(
    service: Any, bundle: Bundle, labels: LabelStore
) -> None:
    active = encode(service, pb.ENCODE_ORDER_MAX_ACTIVATION)
    rare, strong, beyond, dense, unseen, *plain = sorted(active)
    counts, largest = bundle.image_counts, bundle.statistics.max
    counts[:] = 4
    for feature, activation in active.items():
        largest[feature] = 2 * activation
    counts[rare] = 0
    largest[strong], largest[beyond] = active[strong], active[beyond] / 10
    counts[dense], largest[dense] = 9, active[dense]
    largest[unseen] = 0
    # In nats: ln(43/5) = 2.15 of what fires as it can, ln(43) / 2 = 1.88, 2.15 / 2 = 1.08, and 0
    # of what was never seen to fire. The dense one has ln(43/10) = 1.46 and sinks nevertheless.
    expected = [strong, beyond, rare, *plain, unseen, dense]
    found = list(encode(service, pb.ENCODE_ORDER_INFORMATIVE))
    assert found[:3] == expected[:3]
    assert set(found[3:-2]) == set(plain)
    assert found[-2:] == expected[-2:]
    # Confirmed labels come before all others, the dense one last among them; a guess is no label.
    judged = {"judged_by": "captions"}
    labels.add(
        DICTIONARY,
        [
            made(dense, "cat", details=judged),
            made(unseen, "fox", details=judged),
            made(strong, "dog"),
            made(rare, None, details=judged),
        ],
        identity="",
    )
    found = list(encode(service, pb.ENCODE_ORDER_INFORMATIVE))
    assert found[:5] == [unseen, dense, strong, beyond, rare]
    assert list(encode(service, pb.ENCODE_ORDER_INFORMATIVE, top_k=2)) == [unseen, dense]


def test_without_an_order_the_strongest_come_first(service: Any) -> None:
    found = encode(service, pb.ENCODE_ORDER_UNSPECIFIED)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert list(found) == list(encode(service, pb.ENCODE_ORDER_MAX_ACTIVATION))

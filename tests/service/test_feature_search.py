"""SearchFeatures over a real channel: by words, meaning, direction, and what a picture fires."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from vision_sae_server import app
from vision_sae_server.labelling import Labelling

from tests.worlds import serving
from tests.worlds import tiny as worlds
from tests.worlds.labels import made
from tests.worlds.serving import DICTIONARY, refusal
from vision_sae.bundles.read import Bundle, read_bundle
from vision_sae.descriptions.protocol import Description
from vision_sae.labels.store import LabelStore
from vision_sae.pictures.decode import decode_image
from vision_sae.v1 import image_pb2
from vision_sae.v1 import search_service_pb2 as pb
from vision_sae.v1 import search_service_pb2_grpc as search_grpc
from vision_sae.v1.feature_pb2 import FEATURE_VIEW_FULL

LABEL, EXEMPLARS = pb.FEATURE_MATCH_LABEL, pb.FEATURE_MATCH_EXEMPLARS
INVALID = grpc.StatusCode.INVALID_ARGUMENT


class Nearest:
    """Knows what every text means."""

    def nearest(self, text: str, evidence: Any, by: str) -> Sequence[tuple[int, float]]:
        return [(2, 0.9), (0, 0.5)] if by == "exemplars" else [(1, 0.7)]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("zoo")
    serving.zoo(root, described=False)
    return root / "zoo"


@pytest.fixture
def bundle(published: Path) -> Bundle:
    """Opened anew, so that a test may change its arrays."""
    return read_bundle(published)


@pytest.fixture
def labels() -> LabelStore:
    store = LabelStore("sqlite://")
    texts = ["striped cats", "a red dog", None, "a red cat"]
    fillers = [made(i, f"filler {i}") for i in range(4, serving.WIDTH)]
    made_ = [made(i, text) for i, text in enumerate(texts)]
    store.add(DICTIONARY, made_ + fillers, identity="")
    store.add("dictionaries/not-served", [made(0, "cat")], identity="")
    return store


def searching(bundle: Bundle, labels: LabelStore, labelling: Labelling) -> Any:
    return serving.serving(serving.state(bundle, labels, labelling))


@pytest.fixture
def service(bundle: Bundle, labels: LabelStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(app, "_LAME_DUCK_SECONDS", 0)
    with searching(bundle, labels, Labelling()) as channel:
        yield search_grpc.SearchServiceStub(channel)


@pytest.fixture
def knowing(bundle: Bundle, labels: LabelStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(app, "_LAME_DUCK_SECONDS", 0)
    with searching(bundle, labels, Labelling(meanings=Nearest().nearest)) as channel:
        yield search_grpc.SearchServiceStub(channel)


def search(service: Any, **query: Any) -> pb.SearchFeaturesResponse:
    return service.SearchFeatures(pb.SearchFeaturesRequest(**query))


def indices(answer: pb.SearchFeaturesResponse) -> list[int]:
    return [hit.feature.index for hit in answer.hits]


def refused(call: Any) -> tuple[grpc.StatusCode, str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return refusal(caught.value)


def test_text_finds_labels_by_their_words_best_first(service: Any) -> None:
    answer = search(service, text="red cat")
    assert indices(answer)[0] == 3
    assert sorted(indices(answer)) == [0, 1, 3]
    scores = [hit.score for hit in answer.hits]
    assert scores == sorted(scores, reverse=True)
    assert {hit.match for hit in answer.hits} == {LABEL}
    assert answer.hits[0].feature.description.text == "a red cat"
    assert not answer.hits[0].feature.exemplars


def judged(index: int, text: str) -> Description:
    return made(index, text, details={"judged_by": "captions"})


def test_confirmed_labels_come_before_guesses(service: Any, labels: LabelStore) -> None:
    labels.add(DICTIONARY, [judged(0, "striped cats")], identity="")
    hits = search(service, text="red cat").hits
    assert [hit.feature.index for hit in hits][:2] == [0, 3]  # the second has both words
    assert [hit.feature.description.judged_by for hit in hits] == ["captions", "", ""]
    confirmed = search(service, text="red cat", filter="confirmed = true")
    assert indices(confirmed) == [0]


def test_confirmed_labels_come_first_by_their_meaning_too(
    bundle: Bundle, labels: LabelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Alike:
        def nearest(self, text: str, evidence: Any, by: str) -> Sequence[tuple[int, float]]:
            return [(1, 0.9), (0, 0.7)]

    monkeypatch.setattr(app, "_LAME_DUCK_SECONDS", 0)
    labels.add(DICTIONARY, [judged(0, "striped cats")], identity="")
    with searching(bundle, labels, Labelling(meanings=Alike().nearest)) as channel:
        stub = search_grpc.SearchServiceStub(channel)
        by_label = search(stub, text="feline", match=pb.FEATURE_MATCH_LABEL_EMBEDDING)
        by_exemplars = search(stub, text="feline", match=EXEMPLARS)
    assert indices(by_label) == [0, 1]
    assert indices(by_exemplars) == [1, 0]  # what it fires on needs no label


def test_hits_come_in_pages_and_in_the_view_asked_for(service: Any) -> None:
    asked = {"text": "red cat", "page_size": 2, "view": FEATURE_VIEW_FULL}
    first = search(service, **asked)
    second = search(service, page_token=first.next_page_token, **asked)
    assert (len(first.hits), len(second.hits), second.next_page_token) == (2, 1, "")
    assert sorted(indices(first) + indices(second)) == [0, 1, 3]
    everything = [*first.hits, *second.hits]
    (cats,) = [hit.feature for hit in everything if hit.feature.index == 0]
    assert cats.exemplars[0].caption == "a cat"


def test_a_filter_leaves_features_out(service: Any) -> None:
    assert indices(search(service, text="cat", filter="count > 0")) == [0]
    found = refused(lambda: search(service, text="cat", filter="size > 1"))
    assert found == (INVALID, "INVALID_INPUT", "filter")


def test_a_text_that_no_label_holds_finds_nothing(service: Any) -> None:
    assert not search(service, text="\"zebra' OR *").hits


def test_meaning_needs_a_model_and_is_searched_where_there_is_one(
    service: Any, knowing: Any
) -> None:
    found = refused(lambda: search(service, text="cat", match=EXEMPLARS))
    assert found == (grpc.StatusCode.FAILED_PRECONDITION, "NOT_CONFIGURED", "match")
    by_exemplars = search(knowing, text="feline", match=EXEMPLARS)
    assert [(h.feature.index, h.match) for h in by_exemplars.hits] == [
        (2, EXEMPLARS),
        (0, EXEMPLARS),
    ]
    by_label = search(knowing, text="feline", match=pb.FEATURE_MATCH_LABEL_EMBEDDING)
    assert indices(by_label) == [1]
    assert by_label.hits[0].score == pytest.approx(0.7)


def test_words_of_labels_come_before_meaning_and_nothing_twice(knowing: Any) -> None:
    hits = search(knowing, text="striped").hits
    assert [(hit.feature.index, hit.match) for hit in hits] == [(0, LABEL), (2, EXEMPLARS)]


def test_a_feature_finds_those_of_like_direction_and_not_itself(
    service: Any, bundle: Bundle
) -> None:
    torch.manual_seed(0)
    decoder = bundle.dictionary.decoder
    decoder[:] = torch.randn_like(decoder)
    answer = search(service, feature=f"{DICTIONARY}/features/5", page_size=1000)
    rows = decoder.numpy() / np.linalg.norm(decoder.numpy(), axis=1, keepdims=True)
    cosines = rows @ rows[5]
    expected = [i for i in np.argsort(-cosines).tolist() if i != 5]
    assert indices(answer) == expected
    np.testing.assert_allclose([h.score for h in answer.hits], cosines[expected], atol=1e-5)
    assert {hit.match for hit in answer.hits} == {pb.FEATURE_MATCH_DIRECTION}


def noise_png() -> bytes:
    buffer = io.BytesIO()
    worlds.noise_image(16, 16, seed=3).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("box", "patches"), [(None, [0, 1, 2, 3]), ((0, 0, 8, 8), [0]), ((8, 0, 16, 16), [1, 3])]
)
def test_a_picture_finds_what_fires_in_the_region(
    service: Any, bundle: Bundle, box: tuple[int, ...] | None, patches: list[int]
) -> None:
    largest = bundle.statistics.max
    largest[:16] = np.arange(1, 17)
    largest[16:] = 0  # these never fired on the data set: there is no scale to compare with
    region = pb.ImageRegion(image=image_pb2.Image(data=noise_png()))
    if box is not None:
        x0, y0, x1, y1 = box
        region.region.box.CopyFrom(image_pb2.Box(x0=x0, y0=y0, x1=x1, y1=y1))
    answer = search(service, region=region, page_size=1000)
    model = worlds.tiny_model(img_size=16)
    with torch.no_grad(), model.capture([worlds.SITE]) as captured:
        model.forward(model.preprocess(decode_image(noise_png()))[None])
    vectors = captured[worlds.SITE][0, 1:].numpy()
    shares = np.zeros(serving.WIDTH)
    for patch in patches:  # the dictionary keeps the two largest positive values of a vector
        for i in np.argsort(-vectors[patch])[:2]:
            shares[i] += max(vectors[patch, i], 0) / len(patches)
    expected = {i: shares[i] / largest[i] for i in np.flatnonzero(shares[:16]).tolist()}
    assert expected
    assert {h.feature.index: h.score for h in answer.hits} == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"text": "cat", "match": pb.FEATURE_MATCH_DIRECTION}, "match"),
        ({"feature": f"{DICTIONARY}/features/1", "match": LABEL}, "match"),
        ({"region": pb.ImageRegion(image=image_pb2.Image(data=b"no picture"))}, "image"),
        ({}, "query"),
    ],
)
def test_a_query_that_makes_no_sense_is_refused(
    service: Any, query: dict[str, Any], field: str
) -> None:
    code, _, found = refused(lambda: search(service, **query))
    assert (code, found) == (INVALID, field)


def test_unknown_dictionaries_are_not_found(service: Any) -> None:
    found = refused(lambda: search(service, text="cat", dictionaries=["dictionaries/other"]))
    assert found == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND", "dictionary")

"""Whatever the contract lets a caller say, the client lets them say."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from google.protobuf.message import Message
from vision_sae_client import Client, client, edits, targets
from vision_sae_client.jobs import label_job
from vision_sae_client.requests.attribution import encode, stream_attribute

from vision_sae.v1 import (
    attribution_service_pb2,
    catalog_service_pb2,
    description_pb2,
    description_service_pb2,
    generation_service_pb2,
    image_pb2,
    intervention_service_pb2,
    label_job_service_pb2,
    ledger_pb2,
    search_service_pb2,
)
from vision_sae.v1.exemplar_pb2 import ExemplarOptions

FILES = (
    *(catalog_service_pb2, attribution_service_pb2, intervention_service_pb2, search_service_pb2),
    *(description_service_pb2, generation_service_pb2, label_job_service_pb2),
)
FEATURE = "dictionaries/a/features/1"
EXEMPLARS = ExemplarOptions(max_count=3)
FULL: dict[str, Any] = {"full": True, "exemplars": EXEMPLARS}
REQUEST_ID = "6f1bd1a2-6a7c-4a8f-9f57-9d0e4b1fd6f3"
REGION = image_pb2.Region(box=image_pb2.Box(x1=1, y1=1))
NOT_THERE = {
    "ListModelsRequest.page_size": "the client reads all pages",
    "ListDictionariesRequest.page_size": "the client reads all pages",
    "ListLabelJobsRequest.page_size": "the client reads all pages",
    "UpdateDescriptionRequest.update_mask": "the client writes all that can be written",
    "InterveneRequest.plan": "the client streams its pictures, however few",
    "InterveneRequest.images": "the client streams its pictures, however few",
}
"""{field: why the client has no use for it}"""


class Recorder:
    """A channel that keeps what is sent. Listings have a second page, ``t``; all other answers are
    empty."""

    def __init__(self) -> None:
        self.sent: dict[str, list[Message]] = {}

    def unary_unary(self, method: str, **codecs: Any) -> Any:
        def answer(request: Any, **_: Any) -> Any:
            self._keep(method, request)
            response = codecs["response_deserializer"](b"")
            if "next_page_token" in response.DESCRIPTOR.fields_by_name and not request.page_token:
                response.next_page_token = "t"
            return response

        return answer

    def unary_stream(self, method: str, **codecs: Any) -> Any:
        return lambda request, **_: self._none(method, [request])

    def stream_stream(self, method: str, **codecs: Any) -> Any:
        return lambda requests, **_: self._none(method, requests)

    def _none(self, method: str, requests: Iterable[Message]) -> Any:
        for request in requests:
            self._keep(method, request)
        return NoAnswers()

    def _keep(self, method: str, request: Message) -> None:
        self.sent.setdefault(method, []).append(copy.deepcopy(request))


class NoAnswers(Iterator[Any]):
    def __next__(self) -> Any:
        raise StopIteration

    def cancel(self) -> None:
        pass


def call_everything(ask: Client) -> None:
    """Every call of the client, with everything that can be said in it."""
    ask.server_info()
    ask.models()
    ask.model("m")
    ask.dictionaries(filter="width > 1")
    ask.dictionary("a")
    list(ask.features("a", filter="count > 0", order_by="max desc", page_size=2, **FULL))
    ask.feature(FEATURE, **FULL)
    ask.encode(
        b"x",
        "a",
        top_k=2,
        box=(0, 0, 1, 1),
        order=attribution_service_pb2.ENCODE_ORDER_INFORMATIVE,
        max_patches=3,
        include_codes=True,
        min_activation=0.5,
        heatmap_format=image_pb2.HEATMAP_FORMAT_UINT8,
        noising=attribution_service_pb2.Noising(seed=1),
        **FULL,
    )
    options: Any = {
        "method": ledger_pb2.ATTRIBUTION_METHOD_CONTRAST_IMAGE,
        "baseline": b"y",
        "top_k": 2,
        "max_patches": 3,
        "faithfulness": True,
        "special_tokens": True,
        "nodes": 4,
        "heatmap_format": image_pb2.HEATMAP_FORMAT_UINT8,
        "context_images": [b"z"],
        "components": 2,
        **FULL,
    }
    ask.attribute(b"x", targets.class_logit("cat"), dictionaries=["a"], **options)
    list(ask.stream_attribute([b"x"], targets.text("cat"), dictionaries=["a"], **options))
    ask.intervene(
        [b"x"],
        [edits.edit(FEATURE, "add", 1.0)],
        {"cat": targets.class_logit(1)},
        groups=["with"],
        top_classes=2,
        control_count=3,
        seed=4,
        include_embeddings=True,
    )
    ask.search_patches(
        image=b"x",
        box=REGION,
        dictionary="a",
        count=3,
        page_token="t",
        space=search_service_pb2.SEARCH_SPACE_CODE,
        filter=search_service_pb2.PatchFilter(data_sets=["zoo"]),
        collapse_near_duplicates=True,
        thumbnail_pixels=32,
        omit_thumbnails=True,
    )
    patch = search_service_pb2.IndexedPatch(image="1.png")
    like = search_service_pb2.SearchExample(patch=patch)
    ask.search_patches(text="cat", dictionary="a")
    ask.search_patches(feature=FEATURE)
    ask.search_patches(edited_code=search_service_pb2.EditedCodeQuery(patch=patch), dictionary="a")
    ask.search_patches(examples=search_service_pb2.ExamplesQuery(positives=[like]), dictionary="a")
    ask.search_features(
        image=b"x",
        box=REGION,
        dictionaries=["a"],
        match=search_service_pb2.FEATURE_MATCH_ACTIVATION,
        filter="count > 0",
        count=3,
        page_token="t",
        **FULL,
    )
    ask.search_features(text="cat")
    ask.search_features(feature=FEATURE)
    auc = description_pb2.SCORE_METRIC_DETECTION_AUC
    ask.describe_feature(
        FEATURE, describer="milan", force=True, metrics=[auc], request_id=REQUEST_ID, **FULL
    )
    ask.score_description(
        FEATURE,
        "cat",
        metrics=[auc],
        negatives=[description_pb2.SCORE_NEGATIVES_HARD],
        sample_size=9,
        seed=1,
    )
    ask.update_description(FEATURE, "cat", request_id=REQUEST_ID)
    job = label_job(dictionary="a")
    ask.create_label_job(job, name="zoo", request_id=REQUEST_ID)
    ask.label_job("zoo")
    ask.label_jobs(filter="state = running")
    ask.cancel_label_job("zoo")
    list(ask.watch_label_job("zoo", resume_token="1", progress_only=True))
    settings = generation_service_pb2.GenerationSettings(model="models/a")
    list(
        ask.generate(
            settings,
            allow_drift=True,
            omit_twin=True,
            preview_interval=1,
            preview_pixels=32,
            format=image_pb2.IMAGE_FORMAT_JPEG,
            effect_texts=["cat"],
            encode_dictionaries=["a"],
            request_id=REQUEST_ID,
        )
    )
    list(ask.generate(generation_service_pb2.Recipe(settings=settings)))


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Message]]:
    """{full name of an rpc: what the client sends to it}"""
    recorder = Recorder()
    monkeypatch.setattr(client, "open_channel", lambda address, credentials: recorder)
    call_everything(Client("127.0.0.1:1"))
    return recorder.sent


def test_every_field_of_every_request_can_be_set(sent: dict[str, list[Message]]) -> None:
    declared = {
        f"{method.input_type.name}.{field.name}"
        for file in FILES
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
        for field in method.input_type.fields
    }
    every = [message for messages in sent.values() for message in messages]
    every += [
        m.request for m in every if isinstance(m, attribution_service_pb2.StreamAttributeRequest)
    ]
    said = {
        f"{message.DESCRIPTOR.name}.{field.name}"
        for message in every
        for field, _ in message.ListFields()
    }
    assert sorted(declared - said - NOT_THERE.keys()) == []
    assert sorted(NOT_THERE.keys() & said) == []


def test_every_rpc_is_called_or_has_another_in_its_place(sent: dict[str, list[Message]]) -> None:
    rpcs = {
        f"/{service.full_name}/{method.name}"
        for file in FILES
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    left_out = {"/vision_sae.v1.InterventionService/Intervene"}  # StreamIntervene, however few
    assert rpcs - sent.keys() == left_out
    assert sent.keys() <= rpcs


def test_a_part_of_a_picture_is_a_box_or_a_region() -> None:
    boxed = encode(b"x", "a", box=(0, 0, 1, 1))
    given = encode(b"x", "a", box=REGION)
    assert boxed == given


def test_pictures_of_a_stream_are_numbered() -> None:
    requests = stream_attribute([b"x", b"y"], ["a"], top_k=2)
    assert [request.id for request in requests] == ["0", "1"]
